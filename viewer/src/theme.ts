// Colours of the canvas; those of the rest are in style.css. Stages: tints of Okabe and Ito's colours, which people with
// any kind of colour vision tell apart; a test holds their hues to graphopt/debug/viz/palette.py. Marks have signs, too.
import { STAGES, type Kind, type Stage } from "./document";

export type Theme = "light" | "dark";
export const SIGNS: Record<Kind, string> = { removed: "−", added: "+", moved: "→", changed: "~" };
export const MARKS: Record<Theme, Record<Kind, string>> = {
  light: { removed: "#c8372d", added: "#1a7f4b", moved: "#1f6fd6", changed: "#7b8494" },
  dark: { removed: "#ff7b72", added: "#4cc38a", moved: "#6cb1ff", changed: "#8b95a5" },
};
export const FILLS: Record<Theme, Record<Stage, string>> = {
  light: {
    weights: "#cfd3da", request: "#b9def5", schedule: "#f9d48c", request_schedule: "#eac0da", common: "#a9dfcb", step: "#fbeadf",
  },
  dark: {
    weights: "#59606c", request: "#1f5878", schedule: "#7a5610", request_schedule: "#75406a", common: "#17604b", step: "#43301f",
  },
};
export const SURFACE: Record<Theme, { text: string; faint: string; line: string; border: string; frame: string; input: string; focus: string; page: string }> = {
  light: { text: "#1c2430", faint: "#5b6676", line: "#a3adbb", border: "#a9b2c0", frame: "#5b6b85", input: "#e9edf3", focus: "#b3541e", page: "#f7f8fa" },
  dark: { text: "#e6eaf0", faint: "#9aa5b5", line: "#5b6675", border: "#55606f", frame: "#9fb0cc", input: "#1a1f27", focus: "#ffb074", page: "#14181e" },
};

// Frames of modules, by the parity of their depth, so that one inside another can be told from it.
export const FRAMES: Record<Theme, [string, string]> = { light: ["#f7f8fa", "#eef1f5"], dark: ["#14181e", "#1b2129"] };

export function stripes(theme: Theme, stages: Partial<Record<Stage, number>>): { colors: string; stops: string } | null {
  const present = STAGES.filter((stage) => stages[stage]);
  if (present.length === 0) return null;
  const total = present.reduce((sum, stage) => sum + (stages[stage] ?? 0), 0);
  const colors: string[] = [], stops: string[] = [];
  let at = 0;
  for (const stage of present) {
    const next = at + (100 * (stages[stage] ?? 0)) / total;
    colors.push(FILLS[theme][stage], FILLS[theme][stage]);
    stops.push(`${at.toFixed(2)}%`, `${next.toFixed(2)}%`);
    at = next;
  }
  return { colors: colors.join(" "), stops: stops.join(" ") };
}

// Hatching, as a picture that repeats.
export function hatch(theme: Theme): string {
  const picture = `<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><path d="M-2 2 2 -2M0 8 8 0M6 10 10 6" stroke="${MARKS[theme].removed}" stroke-opacity="0.55" stroke-width="1.4"/></svg>`;
  return `data:image/svg+xml;base64,${btoa(picture)}`;  // cytoscape takes a space for the end of an address
}
