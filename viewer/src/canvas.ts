// A drawing of the graph, by cytoscape: one side (before or after the pass) of a layout that both sides share.
import cytoscape, { type Core, type ElementDefinition, type EventObject, type NodeSingular, type StylesheetJson } from "cytoscape";
import { KINDS, shortOp, type Document, type Kind, type Stage, type Version } from "./document";
import { plural } from "./format";
import type { Group, Leaf } from "./hierarchy";
import { GROUP, IN, LEAF, OUT, type Drawing, type Item, type Line, type Point, type Size } from "./layout";
import { FILLS, FRAMES, hatch, MARKS, SIGNS, stripes, SURFACE, type Theme } from "./theme";

export type Side = "before" | "after";
export type Focus = { chosen: string | null; near: Set<string>; stage: Stage | null };

const FONT = '"Inter", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", "Noto Sans", sans-serif';
const GROUP_FONT = `600 12px ${FONT}`, LEAF_FONT = `500 12px ${FONT}`;
const pen = document.createElement("canvas").getContext("2d")!;

function width(text: string, font: string): number {
  pen.font = font;
  return Math.max(...text.split("\n").map((line) => pen.measureText(line).width));
}

// -- what is written on a node ---------------------------------------------------------------------------------------

export function leafLabel(doc: Document, leaf: Leaf, side: Side): string {
  const version = (side === "after" ? (leaf.after ?? leaf.before) : (leaf.before ?? leaf.after)) as Version;
  const sign = leaf.mark ? `${SIGNS[leaf.mark]} ` : "";
  const value = shapeOf(version);
  return `${sign}${shortOp(doc.nodes[leaf.id], version)}${value ? `\n${value}` : ""}`;
}

export function shapeOf(version: Version): string {
  const value = (version.value ?? "").replace(/ strides \([^)]*\)/g, "");
  return value.length > 40 ? plural(value.split("[").length - 1, "tensor") : value;
}

export function marksText(marks: Partial<Record<Kind, number>>): string {
  return KINDS.filter((kind) => marks[kind]).map((kind) => `${SIGNS[kind]}${marks[kind]}`).join("  ");
}

function groupLabel(group: Group, open: boolean): string {
  const marks = marksText(group.marks);
  if (open) return `−  ${group.label}${marks ? `   ${marks}` : ""}`;
  return `+  ${group.label}\n${plural(group.size, "operation")}${marks ? `   ${marks}` : ""}`;
}

export function measurer(doc: Document): (entry: Group | Leaf) => Size {
  return (entry) => {
    const group = "path" in entry;
    const text = group ? groupLabel(entry, false) : leafLabel(doc, entry, "after");
    const least = group ? 92 : 54;
    const wide = Math.max(width(text, group ? GROUP_FONT : LEAF_FONT), group ? width(groupLabel(entry, true), GROUP_FONT) : 0);
    return { width: Math.ceil(Math.max(least, wide + 26)), height: text.includes("\n") ? 42 : 28 };
  };
}

// -- elements --------------------------------------------------------------------------------------------------------

type Area = { x1: number; y1: number; x2: number; y2: number };
const MARGIN = 0.6;  // of the view, on each side, is drawn beyond it
const FAR = 0.1;  // zoom under which operations are specks: what is inside a module is then drawn as its stages alone

// What of a drawing one side shows in an area at a zoom, by id. What is under two pixels is left out.
function elements(doc: Document, drawing: Drawing, side: Side, ghosts: boolean, theme: Theme, area: Area, zoom: number): Map<string, ElementDefinition> {
  const made = new Map<string, ElementDefinition>(), places = new Map<string, Item | Point>(), far = zoom < FAR;
  const put = (key: string): void => {
    const place = places.get(key)!;
    if (made.has(key)) return;
    if (!("width" in place)) {
      made.set(key, { group: "nodes", data: { id: key, z: 26, w: 5, h: 5 }, position: { x: place.x, y: place.y }, classes: "port", selectable: false });
    } else made.set(key, place.group ? groupElement(place, place.group, side, theme, far) : leafElement(doc, place, place.leaf!, side, theme));
  };
  for (const item of drawing.items) {
    if (item.leaf && !(item.leaf[side] ?? (ghosts ? item.leaf.before : undefined))) continue;
    places.set(item.key, item);
    const seen = item.group ? Math.max(item.width, item.height) * zoom > 2 : !far;
    const { x, y, width: w, height: h } = item;
    if (seen && x + w / 2 > area.x1 && x - w / 2 < area.x2 && y + h / 2 > area.y1 && y - h / 2 < area.y2) put(item.key);
  }
  for (const port of drawing.ports) places.set(port.key, port);
  for (const line of drawing.lines) {
    const from = places.get(line.from), to = places.get(line.to);
    if (!from || !to || !(line[side] || (ghosts && line.before))) continue;
    if (far && !(made.has(line.from) || line.from.startsWith(OUT)) !== !(made.has(line.to) || line.to.startsWith(IN))) continue;
    let x1 = Infinity, y1 = Infinity, x2 = -Infinity, y2 = -Infinity;
    for (const { x, y } of line.points) {
      x1 = Math.min(x1, x), x2 = Math.max(x2, x), y1 = Math.min(y1, y), y2 = Math.max(y2, y);
    }
    if (x2 < area.x1 || x1 > area.x2 || y2 < area.y1 || y1 > area.y2 || Math.max(x2 - x1, y2 - y1) * zoom < (far ? 8 : 2)) continue;
    put(line.from);
    put(line.to);
    const element = lineElement(line, from, to, line[side]);
    made.set(String(element.data.id), element);
  }
  return made;
}

function groupElement(item: Item, group: Group, side: Side, theme: Theme, far: boolean): ElementDefinition {
  const speck = item.open && far && group.leaves.length > 0;
  const paint = item.open && !speck ? null : stripes(theme, group.stages[side]);
  const marked = KINDS.find((kind) => group.marks[kind]);
  const label = groupLabel(group, item.open);
  const shift = item.open ? width(label, GROUP_FONT) / 2 + 12 - item.width / 2 : 0;  // titles stand at the left
  const fill = FRAMES[theme][group.depth % 2], z = item.open ? group.depth : 30;
  const data = { id: item.key, label, shift, w: item.width, h: item.height, z, fill, ...(paint ?? {}) };
  const classes = ["group", item.open ? "open" : "closed", ...(paint ? ["striped"] : []), ...(far ? ["thick"] : []), ...(marked ? ["touched"] : [])];
  return { group: "nodes", data, position: { x: item.x, y: item.y }, classes: classes.join(" ") };
}

function leafElement(doc: Document, item: Item, leaf: Leaf, side: Side, theme: Theme): ElementDefinition {
  const version = (leaf[side] ?? leaf.before ?? leaf.after) as Version, node = doc.nodes[leaf.id];
  const fill = version.stage ? FILLS[theme][version.stage] : SURFACE[theme].input;
  const data = { id: item.key, label: leafLabel(doc, leaf, side), w: item.width, h: item.height, z: 30, fill, stage: version.stage ?? "" };
  const shown = leaf.mark && !(leaf.mark === "removed" && side === "after" && leaf.after);
  const classes = ["leaf", node.kind, ...(shown ? ["marked", leaf.mark as string] : [])];
  return { group: "nodes", data, position: { x: item.x, y: item.y }, classes: classes.join(" ") };
}

// Bends in the terms of cytoscape: how far along the straight line between the ends, and how far beside it.
function lineElement(line: Line, from: Point, to: Point, here: boolean): ElementDefinition {
  const [first, ...rest] = line.points, last = rest[rest.length - 1];
  const dx = last.x - first.x, dy = last.y - first.y, length = Math.hypot(dx, dy) || 1;
  const bends = rest.slice(0, -1).filter((point) => !(point.x === first.x && point.y === first.y));
  const along = bends.map((p) => ((p.x - first.x) * dx + (p.y - first.y) * dy) / (length * length));
  const beside = bends.map((p) => ((p.y - first.y) * dx - (p.x - first.x) * dy) / length);
  const straight = beside.every((distance) => Math.abs(distance) < 0.5);
  return {
    group: "edges",
    data: {
      id: `e:${line.key}`, source: line.from, target: line.to, thick: 1 + Math.min(2.5, Math.log2(line.count) / 2),
      start: `${(first.x - from.x).toFixed(1)}px ${(first.y - from.y).toFixed(1)}px`,
      end: `${(last.x - to.x).toFixed(1)}px ${(last.y - to.y).toFixed(1)}px`,
      along: along.map((value) => value.toFixed(4)).join(" "), beside: beside.map((value) => value.toFixed(2)).join(" "),
    },
    classes: `${straight ? "straight" : "bent"}${here ? "" : " ghost"}`,
    selectable: false,
  };
}

// -- style -----------------------------------------------------------------------------------------------------------

function styles(theme: Theme): StylesheetJson {
  const surface = SURFACE[theme], marks = MARKS[theme];
  const marked = (kind: Kind, more: object = {}): StylesheetJson[number] => ({
    selector: `node.${kind}`, style: { "border-width": 2.5, "border-color": marks[kind], ...more },
  });
  return [
    {
      selector: "node",
      style: {
        width: "data(w)", height: "data(h)", "z-index": "data(z)" as never, "z-index-compare": "manual", "overlay-opacity": 0,
        "font-family": FONT, "font-size": 12, "font-weight": 500, color: surface.text, "min-zoomed-font-size": 6,
        "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", "line-height": 1.3, "text-max-width": "1000px",
      },
    },
    { selector: "node[label]", style: { label: "data(label)" } },
    { selector: "node.leaf", style: { shape: "round-rectangle", "background-color": "data(fill)", "border-width": 1, "border-color": surface.border } },
    { selector: "node.input, node.output", style: { shape: "round-rectangle", "corner-radius": "14px", "border-color": surface.frame, "border-width": 1.5 } },
    { selector: "node.group", style: { shape: "round-rectangle", "font-weight": 600, "border-color": surface.frame } },
    { selector: "node.closed", style: { "background-color": surface.input, "border-width": 1.5 } },
    {
      selector: "node.striped",
      style: {
        "background-fill": "linear-gradient", "background-gradient-direction": "to-right",
        "background-gradient-stop-colors": "data(colors)" as never, "background-gradient-stop-positions": "data(stops)" as never,
      },
    },
    {
      selector: "node.open",
      style: {
        "background-color": "data(fill)", "border-width": 1, "border-opacity": 0.45, "corner-radius": "8px",
        "text-valign": "top", "text-margin-y": 23, "text-margin-x": "data(shift)" as never, color: surface.faint,
      },
    },
    { selector: "node.thick", style: { "border-width": 10, "border-opacity": 0.9 } },
    { selector: "node.port", style: { shape: "ellipse", "background-color": surface.line, events: "no" } },
    { selector: "node.touched.closed", style: { "border-width": 2.5, "border-color": marks.changed } },
    marked("changed", { "border-style": "dashed", "border-width": 1.5 }),
    marked("moved"),
    marked("added"),
    marked("removed", {
      "background-image": hatch(theme), "background-repeat": "repeat", "background-fit": "none", "background-clip": "node",
      "background-width": "8px", "background-height": "8px", "border-style": "dashed",
    }),
    {
      selector: "edge",
      style: {
        width: "data(thick)" as never, "line-color": surface.line, "target-arrow-color": surface.line, "target-arrow-shape": "triangle",
        "arrow-scale": 0.7, "curve-style": "straight", "source-endpoint": "data(start)" as never, "target-endpoint": "data(end)" as never,
        "z-index": 25, "z-index-compare": "manual", events: "no",
      },
    },
    {
      selector: "edge.bent",
      style: {
        "curve-style": "round-segments", "segment-weights": "data(along)" as never, "segment-distances": "data(beside)" as never,
        "segment-radii": 12 as never, "edge-distances": "endpoints" as never,
      },
    },
    { selector: 'edge[target ^= "o:"]', style: { "target-arrow-shape": "none" } },
    { selector: "edge.ghost", style: { "line-style": "dashed", "line-color": marks.removed, "target-arrow-color": marks.removed, opacity: 0.4 } },
    { selector: ".dim", style: { opacity: 0.22 } },
    { selector: "node.near", style: { "underlay-color": surface.focus, "underlay-opacity": 0.22, "underlay-padding": 5 } },
    { selector: "node.chosen", style: { "underlay-color": surface.focus, "underlay-opacity": 0.75, "underlay-padding": 4 } },
  ] as StylesheetJson;
}

// -- the canvas ------------------------------------------------------------------------------------------------------

const READABLE = 0.62;

export type Handlers = { leaf: (id: number) => void; group: (path: string) => void; toggle: (path: string) => void; nothing: () => void };

export class Canvas {
  readonly cy: Core;
  private twins: Canvas[] = [];
  private drawn: Drawing | null = null;
  private moved = false;  // by the reader, since all was last shown
  private define: ((area: Area, zoom: number) => Map<string, ElementDefinition>) | null = null;
  private loaded: (Area & { zoom: number }) | null = null;
  private focus: Focus = { chosen: null, near: new Set(), stage: null };

  constructor(container: HTMLElement, private doc: Document, readonly side: Side, handlers: Handlers) {
    this.cy = cytoscape({
      container, minZoom: 0.003, maxZoom: 3, autoungrabify: true, boxSelectionEnabled: false, selectionType: "single",
      motionBlur: false, textureOnViewport: false,
    });
    const path = (id: string): string => id.slice(GROUP.length);
    this.cy.on("tap", (event) => event.target === this.cy && handlers.nothing());
    this.cy.on("tap", "node.leaf", (event) => handlers.leaf(Number(event.target.id().slice(LEAF.length))));
    const onSign = (event: EventObject): boolean => {
      const node = event.target as NodeSingular, at = event.position, spot = node.position(), label = String(node.data("label"));
      const x = spot.x + Number(node.data("shift")) - width(label.split("\n")[0], GROUP_FONT) / 2 + 4;
      const y = node.hasClass("open") ? spot.y - node.height() / 2 + 15 : spot.y - (label.includes("\n") ? 8 : 0);
      return Math.abs(at.x - x) < 9 && Math.abs(at.y - y) < 9;
    };
    this.cy.on("tap", "node.group", (event) => handlers[onSign(event) ? "toggle" : "group"](path(event.target.id())));
    this.cy.on("dbltap", "node.group", (event) => onSign(event) || handlers.toggle(path(event.target.id())));
    this.cy.on("dragpan scrollzoom pinchzoom", () => (this.moved = this.twins[0].moved = true));
    this.cy.on("viewport resize", () => this.load());
    this.cy.on("viewport", () => this.twins.forEach((twin) => twin.follow(this.cy.zoom(), this.cy.pan())));
    this.cy.on("mouseover", "node.leaf, node.group", () => (container.style.cursor = "pointer"));
    this.cy.on("mouseout", "node.leaf, node.group", () => (container.style.cursor = ""));
  }

  pair(twin: Canvas): void {
    this.twins.push(twin);
    twin.twins.push(this);
  }

  private follow(zoom: number, pan: Point): void {
    const mine = this.cy.pan();
    if (this.cy.zoom() !== zoom || mine.x !== pan.x || mine.y !== pan.y) this.cy.viewport({ zoom, pan });
  }

  // The window, or the panes, were resized; what was in the middle stays there.
  resized(centre: boolean): void {
    const before = this.cy.width();
    this.cy.resize();
    if (centre && before > 0) this.cy.panBy({ x: (this.cy.width() - before) / 2, y: 0 });
  }

  paint(theme: Theme): void {
    this.cy.style(styles(theme));
  }

  // Draw. What `anchor` names stays where it is on the screen, or else what is in the middle of a view that the reader
  // has chosen; a view that nobody has moved shows all, or the beginning.
  // A side that follows `leader` is seen from where the leader is seen.
  draw(drawing: Drawing, ghosts: boolean, theme: Theme, anchor: string | null, leader?: Canvas): void {
    const held = !leader && this.drawn && (anchor !== null || this.moved) && this.hold(this.drawn, drawing, anchor);
    this.drawn = drawing;
    this.define = (area, zoom) => elements(this.doc, drawing, this.side, ghosts, theme, area, zoom);
    this.loaded = null;
    this.cy.elements().remove();
    if (leader) {
      this.cy.resize();
      this.follow(leader.cy.zoom(), leader.cy.pan());
    } else if (held) {
      const zoom = this.cy.zoom(), pan = this.cy.pan();
      this.cy.pan({ x: pan.x + (held.was.x - held.is.x) * zoom, y: pan.y + (held.was.y - held.is.y) * zoom });
    } else this.fit(READABLE);
    this.load();
  }

  // Only what is in view, or near it, is on the canvas: that keeps panning smooth however large the graph is.
  private load(): void {
    if (!this.define) return;
    const view = this.cy.extent(), zoom = this.cy.zoom(), known = this.loaded;
    const inside = known && known.x1 <= view.x1 && known.y1 <= view.y1 && known.x2 >= view.x2 && known.y2 >= view.y2;
    if (inside && zoom < 3 * known.zoom && zoom < FAR === known.zoom < FAR) return;
    const dx = MARGIN * view.w, dy = MARGIN * view.h;
    this.loaded = { x1: view.x1 - dx, y1: view.y1 - dy, x2: view.x2 + dx, y2: view.y2 + dy, zoom };
    const wanted = this.define(this.loaded, zoom), refill = known && zoom < FAR !== known.zoom < FAR;
    this.cy.batch(() => {
      const here = new Set<string>();
      this.cy.elements().filter((entry) => refill || !wanted.has(entry.id())).remove();
      this.cy.elements().forEach((entry) => void here.add(entry.id()));
      this.cy.add([...wanted].filter(([id]) => !here.has(id)).map(([, element]) => element));
    });
    this.mark();
  }

  private hold(was: Drawing, is: Drawing, anchor: string | null): { was: Point; is: Point } | null {
    const now = new Map(is.items.map((item) => [item.key, corner(item)]));
    const named = was.items.find((item) => item.key === anchor);
    if (named && now.has(named.key)) return { was: corner(named), is: now.get(named.key)! };
    const box = this.cy.extent(), middle = { x: (box.x1 + box.x2) / 2, y: (box.y1 + box.y2) / 2 };
    let best: Item | null = null, least = Infinity;
    for (const item of was.items) {
      const distance = Math.hypot(item.x - middle.x, item.y - middle.y);
      if (distance < least && now.has(item.key)) [best, least] = [item, distance];
    }
    return best && { was: corner(best), is: now.get(best.key)! };
  }

  // What is chosen, what it is next to, and the only stage to show: keys of elements.
  emphasise(focus: Focus): void {
    this.focus = focus;
    this.mark();
  }

  private mark(): void {
    const { chosen, near, stage } = this.focus;
    this.cy.batch(() => {
      this.cy.nodes(".chosen, .near, .dim").removeClass("chosen near dim");
      if (stage) this.cy.nodes(".leaf").filter((node) => node.data("stage") !== stage).addClass("dim");
      for (const key of near) this.cy.getElementById(key).addClass("near");
      if (chosen) this.cy.getElementById(chosen).removeClass("near").addClass("chosen");
    });
  }

  // All of the layout; at a zoom that is at least `least`, as much of its beginning as there is room for.
  fit(least = 0.003): void {
    this.cy.resize();
    if (!this.drawn) return;
    this.moved = false;
    const view = { w: this.cy.width(), h: this.cy.height() }, { width: w, height: h } = this.drawn;
    const zoom = Math.min(1.1, Math.max(Math.min(view.w / (w + 32), view.h / (h + 64)), Math.min(least, view.w / (w + 32))));
    const y = Math.max((view.h - zoom * h) / 2, 32 * Math.min(1, zoom * 2));
    this.cy.viewport({ zoom, pan: { x: (view.w - zoom * w) / 2, y: least > 0.003 ? y : (view.h - zoom * h) / 2 } });
  }

  // Bring something into the middle, large enough to read.
  centre(key: string): void {
    const item = this.drawn?.items.find((entry) => entry.key === key);
    if (!item) return;
    this.moved = true;
    const zoom = Math.min(1.1, Math.max(this.cy.zoom(), 0.7));
    this.cy.viewport({ zoom, pan: { x: this.cy.width() / 2 - zoom * item.x, y: this.cy.height() / 2 - zoom * item.y } });
  }

  zoomBy(factor: number): void {
    this.moved = true;
    const middle = { x: this.cy.width() / 2, y: this.cy.height() / 2 };
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: middle });
  }

  panBy(x: number, y: number): void {
    this.moved = true;
    this.cy.panBy({ x, y });
  }

  destroy(): void {
    this.cy.destroy();
  }
}

const corner = (item: Item): Point => ({ x: item.x, y: item.y - item.height / 2 });
