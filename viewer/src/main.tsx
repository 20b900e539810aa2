// The page: header, passes, graph, details, cost.
import { render } from "preact";
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Details } from "./details";
import { changesOf, marksOf, read, spanOf, STAGES, type Document, type Metric, type Stage, type Which } from "./document";
import { change, plural, scaled, stageTitle } from "./format";
import { GraphView, type Commands, type Selection } from "./graph";
import { ancestors, atFirst, tree, type Tree } from "./hierarchy";
import { Search, type Hit } from "./search";
import "./style.css";
import { SIGNS, type Theme } from "./theme";
import { Timeline } from "./timeline";
import { Waterfall } from "./waterfall";

const NARROW = "(max-width: 1100px)";

function App({ doc }: { doc: Document }) {
  const end = doc.passes.length - 1;
  const whole = useMemo(() => ({ from: 0, to: end }), [end]);
  const [span, setSpan] = useState(() => (doc.show.after === null ? whole : spanOf(Math.min(doc.show.after, end))));
  const pass = span.to;
  const [weights, setWeights] = useState(false);
  const [double, setDouble] = useState(() => !matchMedia(NARROW).matches);
  const [stage, setStage] = useState<Stage | null>(doc.show.stage);
  const [metric, setMetric] = useState<Metric>(doc.energy ? "joules" : "flops");
  const [which, setWhich] = useState<Which>("first");
  const [selected, setSelected] = useState<Selection>(null);
  const [anchor, setAnchor] = useState<string | null>(null);
  const [goal, setGoal] = useState<{ key: number } | null>(null);
  const [theme, setTheme] = useTheme();
  const changes = useMemo(() => changesOf(doc, span), [doc, span]);
  const model = useMemo(() => tree(doc, span, changes, weights), [doc, span, changes, weights]);
  const [open, setOpen] = useState(() => atFirst(model));
  const commands = useRef<Commands | null>(null);
  const search = useRef<HTMLInputElement | null>(null);
  const asked = useRef<number | null>(null);  // a weight that is to be shown once weights are

  const toggle = useCallback((path: string) => {
    setAnchor(`g:${path}`);
    setOpen((known) => {
      const next = new Set(known);
      if (!next.delete(path)) next.add(path);
      return next;
    });
  }, []);

  const reveal = useCallback((from: Tree, id: number) => {
    const leaf = from.leaves.get(id);
    if (!leaf) return;
    const needed = ancestors(leaf.parent).map((group) => group.path);
    setOpen((known) => (needed.every((path) => known.has(path) || !path) ? known : new Set([...known, ...needed])));
    setAnchor(null);
    setGoal({ key: id });
  }, []);

  const showNode = useCallback((id: number) => {
    setSelected({ node: id });
    if (doc.nodes[id].role === "weight" && !weights) {
      asked.current = id;
      setWeights(true);
    } else reveal(model, id);
  }, [doc, model, weights, reveal]);

  useEffect(() => {
    if (asked.current !== null) reveal(model, asked.current);
    asked.current = null;
  }, [model]);

  const showGroup = useCallback((path: string) => {
    const group = model.groups.get(path);
    if (!group) return;
    setSelected({ group: path });
    const needed = ancestors(group.parent).map((one) => one.path);
    setOpen((known) => new Set([...known, ...needed]));
    setAnchor(`g:${path}`);
  }, [model]);

  const go = useCallback((to: number) => {
    setAnchor(null);
    setSpan(to < 0 || to > end ? whole : spanOf(to));
  }, [end, whole]);

  const changed = useMemo(() => [...marksOf(changes).keys()].filter((id) => model.leaves.has(id)), [changes, model]);
  const nextChange = useCallback((by: number) => {
    if (!changed.length) return;
    const at = selected && "node" in selected ? changed.indexOf(selected.node) : -1;
    showNode(changed[at < 0 ? (by > 0 ? 0 : changed.length - 1) : (at + by + changed.length) % changed.length]);
  }, [changed, selected, showNode]);

  useEffect(() => {
    if (doc.show.after !== null) nextChange(1);  // asked for a pass: what it did first
  }, []);

  const openChanges = useCallback(() => {
    setAnchor(null);
    setOpen((known) => new Set([...known, ...changed.flatMap((id) => ancestors(model.leaves.get(id)!.parent).map((group) => group.path))]));
  }, [changed, model]);

  const expandAll = useCallback(() => {
    setAnchor(null);
    setOpen(new Set(model.groups.keys()));
  }, [model]);

  const keys = useRef<(event: KeyboardEvent) => void>(() => {});
  keys.current = (event) => {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches("input, textarea, select")) return;
    const canvas = target.matches(".canvas");
    const chosen = selected && "group" in selected ? selected.group : null;
    switch (event.key) {
      case "/": search.current?.focus(); search.current?.select(); break;
      case "Escape": setSelected(null); setStage(null); break;
      case "ArrowLeft": canvas && event.shiftKey ? commands.current?.pan(80, 0) : go(span === whole ? end : pass - 1); break;
      case "ArrowRight": canvas && event.shiftKey ? commands.current?.pan(-80, 0) : go(span === whole ? 0 : pass + 1); break;
      case "ArrowUp": if (!canvas) return; commands.current?.pan(0, 80); break;
      case "ArrowDown": if (!canvas) return; commands.current?.pan(0, -80); break;
      case "Enter": if (!canvas || chosen === null) return; toggle(chosen); break;
      case "+": case "=": commands.current?.zoom(1.25); break;
      case "-": commands.current?.zoom(0.8); break;
      case "0": case "f": commands.current?.fit(); break;
      case "b": setDouble(!double); break;
      case "n": nextChange(1); break;
      case "p": nextChange(-1); break;
      default: return;
    }
    event.preventDefault();
  };
  useEffect(() => {
    const listen = (event: KeyboardEvent): void => keys.current(event);
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, []);

  const pick = (hit: Hit): void => (hit.node !== undefined ? showNode(hit.node) : showGroup(hit.group!));
  return (
    <>
      <a class="skip" href="#graph">Skip to the graph</a>
      <Header doc={doc} which={which}>
        <Search doc={doc} model={model} span={span} input={search} onPick={pick} />
        <button type="button" class="tool theme" aria-label={`Switch to ${theme === "dark" ? "light" : "dark"} colours`} title="Light or dark" onClick={() => setTheme(theme === "dark" ? "light" : "dark")}>
          <span aria-hidden="true">{theme === "dark" ? "☀" : "☾"}</span>
        </button>
      </Header>
      <Timeline doc={doc} span={span} which={which} onPass={go} onWhole={() => go(-1)} />
      <main id="graph" class="graph" aria-label="Graph">
        <div class="tools" role="toolbar" aria-label="Graph">
          <button type="button" class="tool" aria-pressed={double} title="Before and after the pass, side by side (b)" onClick={() => setDouble(!double)}>Side by side</button>
          <button type="button" class="tool" aria-pressed={weights} onClick={() => setWeights(!weights)}>Weights</button>
          <span class="gap" />
          <button type="button" class="tool" disabled={!changed.length} title="Next change (n), previous (p)" onClick={() => nextChange(1)}>Next change</button>
          <button type="button" class="tool" disabled={!changed.length} title="Expand every module that the pass changed" onClick={openChanges}>Expand changes</button>
          <span class="gap" />
          <button type="button" class="tool" onClick={expandAll}>Expand all</button>
          <button type="button" class="tool" onClick={() => { setAnchor(null); setOpen(atFirst(model)); }}>Collapse all</button>
          <span class="gap" />
          <button type="button" class="tool" aria-label="Zoom out" title="Zoom out (−)" onClick={() => commands.current?.zoom(0.8)}>−</button>
          <button type="button" class="tool" aria-label="Zoom in" title="Zoom in (+)" onClick={() => commands.current?.zoom(1.25)}>+</button>
          <button type="button" class="tool" title="Show all (0)" onClick={() => commands.current?.fit()}>Fit</button>
        </div>
        <GraphView
          doc={doc} span={span} model={model} open={open} double={double && pass > 0} theme={theme} stage={stage} selected={selected}
          anchor={anchor} goal={goal} onSelect={setSelected} onToggle={toggle} commands={commands}
        />
        <Legend stage={stage} doc={doc} pass={pass} onStage={(next) => setStage(next === stage ? null : next)} />
      </main>
      <Details
        doc={doc} pass={pass} span={span} changes={changes} model={model} open={open} selected={selected} onNode={showNode} onPass={go} onGroup={showGroup} onToggle={toggle}
        onClose={() => setSelected(null)}
      />
      <Waterfall doc={doc} pass={span === whole ? end + 1 : pass} metric={metric} which={which} onPass={go} onMetric={setMetric} onWhich={setWhich} />
    </>
  );
}

// What an image costs, as the list of passes and the chart below count it.
function Header({ doc, which, children }: { doc: Document; which: Which; children: preact.ComponentChildren }) {
  const first = doc.passes[0].image[which], last = doc.passes[doc.passes.length - 1].image[which];
  return (
    <header class="top">
      <p class="brand">graphopt</p>
      <h1>{doc.module}</h1>
      <p class="where">{doc.pipeline}</p>
      <p class="verdict">
        <span title={`All stages together, captured → after all passes; ${plural(doc.steps, "step")}, ${plural(doc.calls, "call")}`}>{which === "first" ? "first image" : "later images"}</span>
        {(["flops", "bytes"] as const).map((metric) => (
          <span key={metric} class="pair">{scaled(first[metric], metric)} → <b>{scaled(last[metric], metric)}</b> <em>{change(first[metric], last[metric])}</em></span>
        ))}
      </p>
      {children}
    </header>
  );
}

function Legend({ stage, doc, pass, onStage }: { stage: Stage | null; doc: Document; pass: number; onStage: (stage: Stage) => void }) {
  const nodes = doc.passes[pass].stages;
  return (
    <div class="legend">
      <div role="group" aria-label="Stages: show one">
        {STAGES.map((one) => (
          <button key={one} type="button" aria-pressed={one === stage} title={`${plural(nodes[one]?.nodes ?? 0, "operation")}; ${doc.runs.first[one]}× for the first image, ${doc.runs.later[one]}× for later ones`} onClick={() => onStage(one)}>
            <i class={`dot ${one}`} aria-hidden="true" />{stageTitle(one)}
          </button>
        ))}
      </div>
      <ul aria-label="Marks">
        {(["removed", "added", "moved", "changed"] as const).map((kind) => <li key={kind}><span class={`chip ${kind}`} aria-hidden="true">{SIGNS[kind]}</span>{kind}</li>)}
      </ul>
    </div>
  );
}

function useTheme(): [Theme, (theme: Theme) => void] {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const [chosen, choose] = useState<Theme | null>(null);
  const [system, setSystem] = useState<Theme>(dark.matches ? "dark" : "light");
  useEffect(() => {
    const follow = (): void => setSystem(dark.matches ? "dark" : "light");
    dark.addEventListener("change", follow);
    return () => dark.removeEventListener("change", follow);
  }, []);
  const theme = chosen ?? system;
  document.documentElement.dataset.theme = theme;
  return [theme, choose];
}

async function begin(): Promise<void> {
  const root = document.getElementById("app")!;
  try {
    const doc = await read(document.getElementById("document")!.textContent ?? "");
    root.replaceChildren();
    render(<App doc={doc} />, root);
  } catch (error) {
    root.textContent = `This report cannot be shown: ${error instanceof Error ? error.message : String(error)}. It needs a browser of 2023 or later.`;
    throw error;
  }
}

void begin();
