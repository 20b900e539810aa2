// The graph: one canvas, or two side by side that move together, and their tools.
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { Canvas, measurer, type Side } from "./canvas";
import { consumers, nearest, versionAt, isWhole, type Document, type Span, type Stage } from "./document";
import { plural } from "./format";
import { ancestors, type Tree } from "./hierarchy";
import { keyOf, Layouter, type Drawing } from "./layout";
import type { Theme } from "./theme";

export type Selection = { node: number } | { group: string } | null;

type Props = {
  doc: Document;
  span: Span;
  model: Tree;
  open: Set<string>;
  double: boolean;
  theme: Theme;
  stage: Stage | null;
  selected: Selection;
  anchor: string | null;
  goal: { key: number } | null;  // a node to bring into the middle
  onSelect: (selection: Selection) => void;
  onToggle: (path: string) => void;
  commands: { current: Commands | null };
};

const SIDES: Side[] = ["before", "after"];
export type Commands = { fit: () => void; zoom: (factor: number) => void; pan: (x: number, y: number) => void };

// What stands for a node: itself, or the closed module around it.
export function visible(model: Tree, open: Set<string>, id: number): string | null {
  const leaf = model.leaves.get(id);
  if (!leaf) return null;
  const closed = ancestors(leaf.parent).find((group) => group.parent && !open.has(group.path));
  return keyOf(closed ?? leaf);
}

export function GraphView(props: Props) {
  const { doc, span, model, open, double, theme, stage, selected, anchor, goal } = props;
  const pass = span.to;
  const layouter = useMemo(() => new Layouter(model, measurer(doc)), [doc, model]);
  const drawing = useMemo<Drawing>(() => {
    const start = performance.now();
    const made = layouter.draw(open);
    performance.measure("graphopt:layout", { start, end: performance.now() });
    return made;
  }, [layouter, open]);
  const boxes = { before: useRef<HTMLDivElement>(null), after: useRef<HTMLDivElement>(null) };
  const canvases = useRef<Canvas[]>([]);
  const now = useRef(props);
  now.current = props;

  useLayoutEffect(() => {
    const handlers = {
      leaf: (id: number) => now.current.onSelect({ node: id }),
      group: (path: string) => now.current.onSelect({ group: path }),
      toggle: (path: string) => now.current.onToggle(path),
      nothing: () => now.current.onSelect(null),
    };
    const [before, after] = SIDES.map((side) => new Canvas(boxes[side].current!, doc, side, handlers));
    before.pair(after);
    canvases.current = [before, after];
    const watch = new ResizeObserver(() => {
      after.resized(true);
      before.resized(false);
    });
    for (const side of SIDES) watch.observe(boxes[side].current!);
    props.commands.current = { fit: () => after.fit(), zoom: (factor) => after.zoomBy(factor), pan: (x, y) => after.panBy(x, y) };
    return () => {
      watch.disconnect();
      canvases.current.forEach((canvas) => canvas.destroy());
    };
  }, [doc]);

  useLayoutEffect(() => canvases.current.forEach((canvas) => canvas.paint(theme)), [doc, theme]);

  // The side before the pass is only hidden where there is nothing to compare.
  useLayoutEffect(() => {
    const [before, after] = canvases.current;
    after.draw(drawing, !double, theme, anchor);
    if (double) before.draw(drawing, false, theme, anchor, after);
    requestAnimationFrame(() => performance.mark("graphopt:drawn"));
  }, [drawing, double, theme]);

  const readers = useMemo(() => consumers(doc, pass), [doc, pass]);
  useEffect(() => {
    const chosen = selected && "node" in selected ? selected.node : null;
    const version = chosen === null ? undefined : (versionAt(doc.nodes[chosen], pass) ?? nearest(doc.nodes[chosen], pass));
    const near = [...(version?.inputs ?? []), ...(chosen === null ? [] : (readers.get(chosen) ?? []))];
    const shown = (id: number): string | null => visible(model, open, id);
    const focus = {
      chosen: selected && "group" in selected ? `g:${selected.group}` : chosen === null ? null : shown(chosen),
      near: new Set(near.map(shown).filter((key) => key !== null)),
      stage,
    };
    for (const canvas of canvases.current) canvas.emphasise(focus);
  }, [drawing, double, theme, selected, stage]);

  useEffect(() => {
    const key = goal && visible(model, open, goal.key);
    if (key) canvases.current[1].centre(key);
  }, [goal]);

  const title = (side: Side): string => {
    if (span.to === 0 || (isWhole(doc, span) && side === "before")) return "as captured";
    return isWhole(doc, span) ? "after all passes" : `${side} ${name(doc, pass)}`;
  };
  return (
    <div class={`canvases${double ? " double" : ""}`}>
      {SIDES.map((side) => (
        <figure key={side} class="pane" data-side={side} hidden={side === "before" && !double}>
          <figcaption>{title(side)}</figcaption>
          <div
            ref={boxes[side]} class="canvas" tabIndex={0} role="group"
            aria-label={`Graph ${title(side)}: ${plural(drawing.items.length, "node and module", "nodes and modules")} shown. Search, or the lists of details, reach each of them.`}
          />
        </figure>
      ))}
    </div>
  );
}

export const name = (doc: Document, pass: number): string => doc.passes[pass].name.replace(/\{.*$/, "");
