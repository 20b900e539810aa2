// Places for what is visible, by dagre: each open module is laid out by itself, its inside first, so that opening one
// moves its neighbours and recomputes only it and what encloses it. Edges run between neighbours; where they lead into
// a module they go on inside from a port on its border.
import { Graph, layout as dagre } from "@dagrejs/dagre";
import type { Group, Leaf, Tree } from "./hierarchy";

export type Point = { x: number; y: number };
export type Item = { key: string; group?: Group; leaf?: Leaf; open: boolean; x: number; y: number; width: number; height: number };
export type Line = { key: string; from: string; to: string; points: Point[]; count: number; before: boolean; after: boolean };
export type Drawing = { items: Item[]; lines: Line[]; ports: (Point & { key: string })[]; width: number; height: number };
export type Size = { width: number; height: number };

type Wire = { from: string; to: string; count: number; before: boolean; after: boolean };
type Arrangement = Size & { spots: Point[]; bends: Point[][] };
const HEAD = 30, PAD = 14, PORT = 6;
export const IN = "i:", OUT = "o:", GROUP = "g:", LEAF = "n:";

export const keyOf = (entry: Group | Leaf): string => ("path" in entry ? GROUP + entry.path : LEAF + entry.id);

export class Layouter {
  private cache = new Map<string, Drawing>();
  private alike = new Map<string, Arrangement>();
  private wires = new Map<string, Map<string, Wire>>();  // group → wires among its children, whether it is open or not
  private inner = new Map<string, string[]>();  // group → paths of all groups below it

  constructor(private model: Tree, private measure: (entry: Group | Leaf) => Size) {
    for (const { from, to, before, after } of model.edges) this.wire(from, to, before, after);
    for (const group of model.groups.values()) {
      for (let at = group.parent; at; at = at.parent) {
        const known = this.inner.get(at.path);
        if (known) known.push(group.path);
        else this.inner.set(at.path, [group.path]);
      }
    }
  }

  draw(open: Set<string>): Drawing {
    return this.inside(this.model.root, open);
  }

  private wire(from: Leaf, to: Leaf, before: boolean, after: boolean): void {
    const ups = chain(from), downs = chain(to);
    let shared = 0;
    while (shared < ups.length - 1 && shared < downs.length - 1 && ups[shared + 1] === downs[shared + 1]) shared += 1;
    const add = (group: Group, a: string, b: string): void => {
      const known = this.wires.get(group.path) ?? new Map<string, Wire>();
      this.wires.set(group.path, known);
      const key = `${a}>${b}`, wire = known.get(key);
      if (wire) {
        wire.count += 1;
        wire.before ||= before;
        wire.after ||= after;
      } else known.set(key, { from: a, to: b, count: 1, before, after });
    };
    add(ups[shared] as Group, keyOf(ups[shared + 1]), keyOf(downs[shared + 1]));
    for (let k = shared + 1; k < ups.length - 1; k += 1) add(ups[k] as Group, keyOf(ups[k + 1]), OUT + (ups[k] as Group).path);
    for (let k = shared + 1; k < downs.length - 1; k += 1) add(downs[k] as Group, IN + (downs[k] as Group).path, keyOf(downs[k + 1]));
  }

  private inside(group: Group, open: Set<string>): Drawing {
    const signature = `${group.path}|${(this.inner.get(group.path) ?? []).filter((path) => open.has(path)).join("|")}`;
    const known = this.cache.get(signature);
    if (known) return known;
    const made = this.place(group, open);
    this.cache.set(signature, made);
    return made;
  }

  private place(group: Group, open: Set<string>): Drawing {
    const wires = [...(this.wires.get(group.path)?.values() ?? [])];
    const children = [...group.groups, ...group.leaves], keys = children.map(keyOf);
    const within = new Map<string, Drawing>();
    const sizes = children.map((child, k): Size => {
      if (!("path" in child && open.has(child.path))) return this.measure(child);
      const drawing = this.inside(child, open);
      within.set(keys[k], drawing);
      return { width: drawing.width, height: drawing.height };
    });
    // Ports have places like children, so that one number stands for either.
    const index = new Map(keys.map((key, k) => [key, k]));
    for (const port of [IN + group.path, OUT + group.path]) {
      if (!wires.some(({ from, to }) => from === port || to === port)) continue;
      index.set(port, sizes.length);
      sizes.push({ width: PORT, height: PORT });
    }
    const ends = wires.map(({ from, to, count }): [number, number, number] => [index.get(from)!, index.get(to)!, count > 1 ? 2 : 1]);
    return this.collect(group, children, wires, within, index, this.arrange(sizes, ends));
  }

  // Blocks of a model are alike: what was laid out once need not be again.
  private arrange(sizes: Size[], ends: [number, number, number][]): Arrangement {
    const signature = `${sizes.map(({ width, height }) => `${width},${height}`).join(" ")}|${ends.join(" ")}`;
    const known = this.alike.get(signature);
    if (known) return known;
    const graph = new Graph({ directed: true, multigraph: false, compound: false });
    const ranker = sizes.length > 100 ? "longest-path" : "network-simplex";
    graph.setGraph({ rankdir: "TB", ranksep: 26, nodesep: 16, edgesep: 10, marginx: 0, marginy: 0, ranker });
    graph.setDefaultEdgeLabel(() => ({}));
    sizes.forEach((size, k) => graph.setNode(String(k), { ...size }));
    for (const [from, to, weight] of ends) if (from !== to) graph.setEdge(String(from), String(to), { weight, minlen: 1 });
    dagre(graph);
    const all = graph.graph() as { width?: number; height?: number };
    const made: Arrangement = {
      width: finite(all.width), height: finite(all.height),
      spots: sizes.map((_, k) => graph.node(String(k)) as Point),
      bends: ends.map(([from, to]) => (from === to ? [] : ((graph.edge(String(from), String(to)) as { points?: Point[] }).points ?? []))),
    };
    this.alike.set(signature, made);
    return made;
  }

  private collect(
    group: Group, children: (Group | Leaf)[], wires: Wire[], within: Map<string, Drawing>, index: Map<string, number>, found: Arrangement,
  ): Drawing {
    const frame = group.parent !== null, title = frame ? this.measure(group).width : 0;
    const dx = frame ? Math.max(PAD, (title - found.width) / 2) : 0, dy = frame ? HEAD : 0;
    const drawing: Drawing = { items: [], lines: [], ports: [], width: found.width + 2 * dx, height: found.height + dy + (frame ? PAD : 0) };
    const ports = new Map<string, Point>();
    children.forEach((child, k) => {
      const key = keyOf(child), inner = within.get(key), size = inner ?? this.measure(child);
      const x = found.spots[k].x + dx, y = found.spots[k].y + dy;
      const entry = "path" in child ? { group: child } : { leaf: child };
      drawing.items.push({ key, ...entry, open: inner !== undefined, x, y, width: size.width, height: size.height });
      if (!inner) return;
      const left = x - inner.width / 2, top = y - inner.height / 2;
      const moved = ({ x, y }: Point): Point => ({ x: x + left, y: y + top });
      for (const item of inner.items) drawing.items.push({ ...item, ...moved(item) });
      for (const line of inner.lines) drawing.lines.push({ ...line, points: line.points.map(moved) });
      for (const one of inner.ports) {
        const at = { key: one.key, ...moved(one) };
        drawing.ports.push(at);
        ports.set(one.key, at);
      }
    });
    for (const [key, y] of [[IN + group.path, 0], [OUT + group.path, drawing.height]] as const) {
      const k = index.get(key);
      if (k === undefined) continue;
      const at = { key, x: found.spots[k].x + dx, y };
      drawing.ports.push(at);
      ports.set(key, at);
    }
    wires.forEach(({ from, to, count, before, after }, k) => {
      if (!found.bends[k].length) return;
      const points = found.bends[k].map(({ x, y }) => ({ x: x + dx, y: y + dy }));
      // An open module is entered and left by its ports.
      const source = within.has(from) ? OUT + from.slice(GROUP.length) : from;
      const target = within.has(to) ? IN + to.slice(GROUP.length) : to;
      const first = ports.get(source), last = ports.get(target);
      if (first) points[0] = first;
      if (last) points[points.length - 1] = last;
      drawing.lines.push({ key: `${from}>${to}`, from: first ? source : from, to: last ? target : to, points, count, before, after });
    });
    return drawing;
  }
}

const finite = (size: number | undefined): number => (size !== undefined && Number.isFinite(size) ? size : 0);

// From the whole model down to the leaf.
function chain(leaf: Leaf): (Group | Leaf)[] {
  const found: (Group | Leaf)[] = [leaf];
  for (let at: Group | null = leaf.parent; at; at = at.parent) found.push(at);
  return found.reverse();
}
