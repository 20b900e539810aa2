// Numbers as people read them.
import type { Metric } from "./document";

const UNITS: Record<Metric, string> = { flops: "FLOP", bytes: "B", joules: "J" };
export const METRICS: Record<Metric, string> = { flops: "FLOPs", bytes: "bytes", joules: "joules" };
const PREFIXES: [number, string][] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

export function scaled(value: number | null | undefined, metric: Metric): string {
  if (value === null || value === undefined) return "unknown";
  if (value === 0) return `0 ${UNITS[metric]}`;
  const size = Math.abs(value);
  const whole = metric === "joules" ? PREFIXES : PREFIXES.slice(0, 5);
  const [factor, prefix] = whole.find(([least]) => size >= 0.9995 * least) ?? whole[whole.length - 1];
  const digits = size / factor >= 99.5 ? (value / factor).toFixed(0) : String(Number((value / factor).toPrecision(3)));
  return `${digits.replace("-", "−")} ${prefix}${UNITS[metric]}`;
}

const NOISE = 1e-9; // sums in another order

// `−8.7 %`; nothing where nothing changed.
export function change(before: number | null, after: number | null): string {
  if (before === null || after === null || same(before, after)) return "";
  if (!before) return "new";
  const percent = (after / before - 1) * 100;
  const size = Math.abs(percent);
  const text = size >= 10 ? size.toFixed(0) : String(Number(size.toPrecision(size < 0.1 ? 1 : 2)));
  return `${percent < 0 ? "−" : "+"}${text} %`;
}

export const same = (before: number, after: number): boolean =>
  Math.abs(after - before) <= NOISE * Math.max(Math.abs(before), Math.abs(after));

export const plural = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`;
export const stageTitle = (stage: string): string => stage.replace("_", " × ");
