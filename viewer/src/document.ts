// The document that graphopt/debug/viz/model.py writes, and what is read off it; docs/report.md describes the fields.

export const SCHEMA = 1;
export const STAGES = ["weights", "request", "schedule", "request_schedule", "common", "step"] as const;
export type Stage = (typeof STAGES)[number];
export type Metric = "flops" | "bytes" | "joules";
export type Kind = "removed" | "added" | "moved" | "changed";
export const KINDS: Kind[] = ["removed", "added", "moved", "changed"];
export type Which = "first" | "later";

export type Version = {
  from: number;
  to: number;
  name: string;
  op?: string;
  inputs?: number[];
  text?: string;
  value?: string;
  stage?: Stage;
  flops?: number;
  bytes?: number;
  joules?: number;
  module?: string;
  source?: string;
  rules?: string[];
};

export type Node = {
  kind: "input" | "call" | "subgraph" | "output";
  role?: string;
  path?: string;
  error?: number | "infinite";
  versions: Version[];
};

export type Sums = Record<Metric, number | null>;

export type Pass = {
  number: number;
  name: string;
  slug: string;
  accuracy: string;
  error: string | null;
  fired: (number | string)[];
  refusals: { reason: string; places: (number | string)[] }[];
  changes: Record<Kind, number[]>;
  stages: Partial<Record<Stage, Sums & { nodes: number; weight_bytes: number }>>;
  image: Record<Which, Sums>;
};

export type Document = {
  schema: number;
  module: string;
  pipeline: string;
  device: string;
  steps: number;
  calls: number;
  runs: Record<Which, Record<Stage, number>>;
  energy: string;
  measured: boolean;
  show: { stage: Stage | null; after: number | null };
  targets: Record<string, string>;
  failed: Record<string, string>;
  passes: Pass[];
  nodes: Node[];
};

export async function read(text: string): Promise<Document> {
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const found = (await new Response(stream).json()) as Document;
  if (found.schema !== SCHEMA) throw new Error(`this page reads schema ${SCHEMA}, the document has ${found.schema}`);
  return found;
}

export const versionAt = (node: Node, pass: number): Version | undefined =>
  node.versions.find((version) => version.from <= pass && pass <= version.to);

// A node as it is at a pass, or else as it was last, or will be first.
export function nearest(node: Node, pass: number): Version {
  const past = node.versions.filter((version) => version.from <= pass);
  return past.length ? past[past.length - 1] : node.versions[0];
}

export const isWeight = (node: Node): boolean => node.role === "weight";

// `ops.aten.linear.default` → `linear`; overloads that say something keep their name.
export function shortOp(node: Node, version: Version): string {
  if (node.kind !== "call") return node.kind === "input" ? (node.path ?? version.name) : version.name;
  const parts = (version.op ?? "").split(".");
  if (parts[0] !== "ops") return parts[parts.length - 1];
  const name = parts[2] ?? "";
  return parts[1] === "aten" ? name : `${parts[1]}.${name}`;
}

// What is compared: the graphs after two passes, most often one pass and the one before it.
export type Span = { from: number; to: number };
export const spanOf = (pass: number): Span => ({ from: Math.max(0, pass - 1), to: pass });
export const isWhole = (doc: Document, { from, to }: Span): boolean => from === 0 && to === doc.passes.length - 1 && to > 1;

// Over several passes a node that is in another stage counts as moved, whatever else changed.
export function changesOf(doc: Document, span: Span): Record<Kind, number[]> {
  if (span.from >= span.to - 1) return doc.passes[span.to].changes;
  const found: Record<Kind, number[]> = { removed: [], added: [], moved: [], changed: [] };
  doc.nodes.forEach((node, id) => {
    const before = versionAt(node, span.from), after = versionAt(node, span.to);
    if (before && !after) found.removed.push(id);
    else if (!before && after) found.added.push(id);
    else if (before && after && before !== after && !same(before, after)) {
      found[before.stage === after.stage ? "changed" : "moved"].push(id);
    }
  });
  return found;
}

const same = (a: Version, b: Version): boolean =>
  a.stage === b.stage && a.op === b.op && a.value === b.value && String(a.inputs) === String(b.inputs);

export function marksOf(changes: Record<Kind, number[]>): Map<number, Kind> {
  return new Map(KINDS.flatMap((kind) => changes[kind].map((node) => [node, kind] as const)));
}

// Who reads a node at a pass.
export function consumers(doc: Document, pass: number): Map<number, number[]> {
  const found = new Map<number, number[]>();
  doc.nodes.forEach((node, index) => {
    for (const source of versionAt(node, pass)?.inputs ?? []) {
      const known = found.get(source);
      if (known) known.push(index);
      else found.set(source, [index]);
    }
  });
  return found;
}
