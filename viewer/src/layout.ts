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
const HEAD = 30, PAD = 14, PORT = 6;
export const IN = "i:", OUT = "o:", GROUP = "g:", LEAF = "n:";

export const keyOf = (entry: Group | Leaf): string => ("path" in entry ? GROUP + entry.path : LEAF + entry.id);

export class Layouter {
  private cache = new Map<string, Drawing>();
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
    const children = [...group.groups, ...group.leaves];
    const graph = new Graph({ directed: true, multigraph: false, compound: false });
    const ranker = children.length > 100 ? "longest-path" : "network-simplex";
    graph.setGraph({ rankdir: "TB", ranksep: 26, nodesep: 16, edgesep: 10, marginx: 0, marginy: 0, ranker });
    graph.setDefaultEdgeLabel(() => ({}));
    const within = new Map<string, Drawing>();
    for (const child of children) {
      const key = keyOf(child);
      if ("path" in child && open.has(child.path)) {
        const drawing = this.inside(child, open);
        within.set(key, drawing);
        graph.setNode(key, { width: drawing.width, height: drawing.height });
      } else graph.setNode(key, { ...this.measure(child) });
    }
    const input = IN + group.path, output = OUT + group.path;
    for (const { from, to, count } of wires) {
      for (const port of [from, to]) {
        if (port === input || port === output) graph.setNode(port, { width: PORT, height: PORT });
      }
      if (from !== to) graph.setEdge(from, to, { weight: count > 1 ? 2 : 1, minlen: 1 });
    }
    dagre(graph);
    return this.collect(group, graph, wires, within);
  }

  private collect(group: Group, graph: Graph, wires: Wire[], within: Map<string, Drawing>): Drawing {
    const frame = group.parent !== null;
    const size = graph.graph() as { width?: number; height?: number };
    const title = frame ? this.measure(group).width : 0;
    const dx = frame ? Math.max(PAD, (title - (size.width ?? 0)) / 2) : 0, dy = frame ? HEAD : 0;
    const drawing: Drawing = {
      items: [], lines: [], ports: [], width: (size.width ?? 0) + 2 * dx, height: (size.height ?? 0) + dy + (frame ? PAD : 0),
    };
    const port = new Map<string, Point>();
    for (const child of [...group.groups, ...group.leaves]) {
      const key = keyOf(child), spot = graph.node(key), inner = within.get(key);
      const x = spot.x + dx, y = spot.y + dy;
      const entry = "path" in child ? { group: child } : { leaf: child };
      drawing.items.push({ key, ...entry, open: inner !== undefined, x, y, width: spot.width, height: spot.height });
      if (!inner) continue;
      const left = x - inner.width / 2, top = y - inner.height / 2;
      const moved = ({ x, y }: Point): Point => ({ x: x + left, y: y + top });
      for (const item of inner.items) drawing.items.push({ ...item, ...moved(item) });
      for (const line of inner.lines) drawing.lines.push({ ...line, points: line.points.map(moved) });
      for (const one of inner.ports) {
        const at = { key: one.key, ...moved(one) };
        drawing.ports.push(at);
        port.set(one.key, at);
      }
    }
    for (const [key, y] of [[IN + group.path, 0], [OUT + group.path, drawing.height]] as const) {
      if (frame && graph.hasNode(key)) {
        const at = { key, x: graph.node(key).x + dx, y };
        drawing.ports.push(at);
        port.set(key, at);
      }
    }
    for (const { from, to, count, before, after } of wires) {
      const edge = graph.edge(from, to) as { points?: Point[] } | undefined;
      if (!edge?.points) continue;
      const points = edge.points.map(({ x, y }) => ({ x: x + dx, y: y + dy }));
      // An open module is entered and left by its ports.
      const source = within.has(from) ? OUT + from.slice(GROUP.length) : from;
      const target = within.has(to) ? IN + to.slice(GROUP.length) : to;
      const first = port.get(source), last = port.get(target);
      if (first) points[0] = first;
      if (last) points[points.length - 1] = last;
      drawing.lines.push({
        key: `${from}>${to}`, from: first ? source : from, to: last ? target : to, points, count, before, after,
      });
    }
    return drawing;
  }
}

// From the whole model down to the leaf.
function chain(leaf: Leaf): (Group | Leaf)[] {
  const found: (Group | Leaf)[] = [leaf];
  for (let at: Group | null = leaf.parent; at; at = at.parent) found.push(at);
  return found.reverse();
}
