// The modules as a tree over the nodes before and after a pass, and the edges between what of it is visible.
import { isWeight, marksOf, versionAt, type Document, type Kind, type Span, type Stage, type Version } from "./document";

export type Leaf = {
  id: number;
  parent: Group;
  before?: Version;
  after?: Version;
  mark?: Kind;
};

export type Group = {
  path: string;  // dotted, empty for the whole model
  label: string;
  parent: Group | null;
  depth: number;
  groups: Group[];
  leaves: Leaf[];
  size: number;  // leaves below
  marks: Partial<Record<Kind, number>>;
  stages: { before: Partial<Record<Stage, number>>; after: Partial<Record<Stage, number>> };  // leaves below by stage
};

export type Tree = {
  root: Group;
  leaves: Map<number, Leaf>;
  groups: Map<string, Group>;
  edges: { from: Leaf; to: Leaf; before: boolean; after: boolean }[];
};

const CROWD = 150;  // more operations than this in one module are shown in runs of
const RUN = 50;

export function tree(doc: Document, span: Span, changes: Record<Kind, number[]>, weights: boolean): Tree {
  const marks = marksOf(changes);
  const root = group("", "", null);
  const groups = new Map([["", root]]);
  const leaves = new Map<number, Leaf>();
  const open = (path: string): Group => {
    const known = groups.get(path);
    if (known) return known;
    const cut = path.lastIndexOf(".");
    const own = path.slice(cut + 1), above = path.slice(0, Math.max(cut, 0));
    const label = /^\d+$/.test(own) && above ? `${above.slice(above.lastIndexOf(".") + 1)}.${own}` : own;  // 0 of many lists
    const made = group(path, label, open(above));
    groups.set(path, made);
    return made;
  };
  doc.nodes.forEach((node, id) => {
    const after = versionAt(node, span.to);
    const before = span.from < span.to ? versionAt(node, span.from) : after;
    if ((!before && !after) || (isWeight(node) && !weights)) return;
    const path = isWeight(node) ? (node.path ?? "").split(".").slice(0, -1).join(".") : ((after ?? before)?.module ?? "");
    const home = open(path);
    const leaf: Leaf = { id, parent: home, before, after, mark: marks.get(id) };
    home.leaves.push(leaf);
    leaves.set(id, leaf);
  });
  tidy(root, groups);
  count(root);
  const edges: Tree["edges"] = [];
  for (const to of leaves.values()) {
    const was = new Set(to.before?.inputs), is = new Set(to.after?.inputs);
    for (const source of new Set([...was, ...is])) {
      const from = leaves.get(source);
      if (from) edges.push({ from, to, before: was.has(source), after: is.has(source) });
    }
  }
  return { root, leaves, groups, edges };
}

function group(path: string, label: string, parent: Group | null): Group {
  const made: Group = {
    path, label, parent, depth: parent ? parent.depth + 1 : 0, groups: [], leaves: [], size: 0, marks: {},
    stages: { before: {}, after: {} },
  };
  parent?.groups.push(made);
  return made;
}

// Modules of one operation are that operation, modules of one module are named together, crowds are cut into runs.
function tidy(node: Group, groups: Map<string, Group>): void {
  for (const child of [...node.groups]) {
    tidy(child, groups);
    if (child.groups.length === 0 && child.leaves.length === 1) {
      adopt(node, child, groups);
    } else if (child.groups.length === 1 && child.leaves.length === 0) {
      const [only] = child.groups;
      if (!only.label.startsWith(`${child.label}.`)) only.label = `${child.label}.${only.label}`;
      only.parent = node;
      node.groups[node.groups.indexOf(child)] = only;
      groups.delete(child.path);
    }
  }
  if (node.leaves.length > CROWD) {
    const crowd = node.leaves;
    node.leaves = [];
    for (let start = 0; start < crowd.length; start += RUN) {
      const made = group(`${node.path}#${start / RUN + 1}`, `operations ${start + 1}–${Math.min(start + RUN, crowd.length)}`, node);
      groups.set(made.path, made);
      made.leaves = crowd.slice(start, start + RUN);
      made.leaves.forEach((leaf) => (leaf.parent = made));
    }
  }
}

function adopt(node: Group, child: Group, groups: Map<string, Group>): void {
  node.groups.splice(node.groups.indexOf(child), 1);
  for (const leaf of child.leaves) {
    leaf.parent = node;
    node.leaves.push(leaf);
  }
  groups.delete(child.path);
}

function count(node: Group): void {
  node.depth = node.parent ? node.parent.depth + 1 : 0;
  node.size = node.leaves.length;
  for (const leaf of node.leaves) {
    if (leaf.mark) node.marks[leaf.mark] = (node.marks[leaf.mark] ?? 0) + 1;
    for (const side of ["before", "after"] as const) {
      const stage = leaf[side]?.stage;
      if (stage) node.stages[side][stage] = (node.stages[side][stage] ?? 0) + 1;
    }
  }
  for (const child of node.groups) {
    count(child);
    node.size += child.size;
    add(node.marks, child.marks);
    add(node.stages.before, child.stages.before);
    add(node.stages.after, child.stages.after);
  }
}

function add<K extends string>(into: Partial<Record<K, number>>, from: Partial<Record<K, number>>): void {
  for (const key of Object.keys(from) as K[]) into[key] = (into[key] ?? 0) + (from[key] ?? 0);
}

export function ancestors(node: Group | null): Group[] {
  const found: Group[] = [];
  for (let at = node; at; at = at.parent) found.push(at);
  return found.reverse();
}

// What is open at first: two levels of modules, or one where two are too many to take in.
const MANY = 120;
export function atFirst(model: Tree): Set<string> {
  const open = new Set<string>();
  let visible = model.root.groups.length + model.root.leaves.length;
  for (const child of [...model.root.groups].sort((a, b) => a.groups.length + a.leaves.length - b.groups.length - b.leaves.length)) {
    const more = child.groups.length + child.leaves.length - 1;
    if (child.groups.length === 0 || visible + more > MANY) continue;
    visible += more;
    open.add(child.path);
  }
  return open;
}
