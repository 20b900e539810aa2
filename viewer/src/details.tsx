// What is known of the chosen node or module, or of the pass where none is chosen.
import type { ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import { consumers, isWeight, isWhole, KINDS, nearest, shortOp, STAGES, versionAt, type Document, type Kind, type Node, type Span, type Stage, type Version } from "./document";
import { shapeOf } from "./canvas";
import { change, METRICS, plural, scaled, stageTitle } from "./format";
import { name, type Selection } from "./graph";
import type { Group, Tree } from "./hierarchy";
import { Breakable } from "./text";
import { SIGNS } from "./theme";

type Props = {
  doc: Document; pass: number; span: Span; changes: Record<Kind, number[]>; model: Tree; open: Set<string>; selected: Selection;
  onNode: (id: number) => void; onPass: (pass: number) => void; onGroup: (path: string) => void; onToggle: (path: string) => void; onClose: () => void;
};

export function Details(props: Props) {
  const { selected, doc, model } = props;
  const group = selected && "group" in selected ? model.groups.get(selected.group) : undefined;
  return (
    <aside class="details" aria-label="Details">
      {selected && "node" in selected ? <NodeDetails {...props} id={selected.node} /> : group ? <GroupDetails {...props} group={group} /> : <PassDetails {...props} />}
      {doc.failed && Object.entries(doc.failed).map(([stage, reason]) => <p key={stage} class="failed">{stageTitle(stage)} ran on eager: {reason}</p>)}
    </aside>
  );
}

function Head({ title, kind, onClose, children }: { title: string; kind: string; onClose?: () => void; children?: ComponentChildren }) {
  return (
    <header>
      <p class="kind">{kind}</p>
      {onClose && <button type="button" class="close" aria-label="Close, back to the pass" title="Close (Esc)" onClick={onClose}>×</button>}
      <h2><Breakable text={title} /></h2>
      {children}
    </header>
  );
}

const LISTED = 80;

// Nodes as links; a place that only a rewrite knew, in words.
function Nodes({ doc, pass, ids, onNode, title, closed }: { doc: Document; pass: number; ids: (number | string)[]; onNode: (id: number) => void; title: string; closed?: boolean }) {
  if (!ids.length) return null;
  return (
    <details open={!closed}>
      <summary>{title} <span class="count">{ids.length}</span></summary>
      <ul class="nodes">
        {ids.slice(0, LISTED).map((id, k) => <li key={k}>{typeof id === "string" ? <span class="gone">{id}</span> : <Link doc={doc} pass={pass} id={id} onNode={onNode} />}</li>)}
      </ul>
      {ids.length > LISTED && <p class="note">and {ids.length - LISTED} more</p>}
    </details>
  );
}

function Link({ doc, pass, id, onNode }: { doc: Document; pass: number; id: number; onNode: (id: number) => void }) {
  const node = doc.nodes[id], version = nearest(node, pass);
  const place = [isWeight(node) ? "weight" : version.module, shapeOf(version)].filter(Boolean).join(" · ");
  return (
    <button type="button" class="link" onClick={() => onNode(id)} title={version.text}>
      <i class={`dot ${version.stage ?? "input"}`} aria-hidden="true" /><b>{version.name}</b><span>{place}</span>
    </button>
  );
}

function Fact({ term, children }: { term: string; children: ComponentChildren }) {
  return children === "" || children === undefined || children === null ? null : <><dt>{term}</dt><dd>{children}</dd></>;
}

// -- a node ----------------------------------------------------------------------------------------------------------

function NodeDetails({ doc, pass, id, onNode, onPass, onGroup, onClose, model }: Props & { id: number }) {
  const node = doc.nodes[id], here = versionAt(node, pass), version = here ?? nearest(node, pass);
  const readers = useMemo(() => consumers(doc, here ? pass : version.to), [doc, pass, id]);
  const sources = version.inputs ?? [];
  const held = doc.passes.flatMap((entry) => entry.refusals.filter((one) => one.places.includes(id)).map((one) => [entry.number, one.reason] as const));
  return (
    <>
      <Head title={version.name} kind={node.kind === "call" ? shortOp(node, version) : node.kind === "input" ? (isWeight(node) ? "weight" : `input, ${node.role}`) : node.kind} onClose={onClose}>
        {!here && <p class="absent">not in the graph after pass {pass}; shown as after pass {version.to}</p>}
      </Head>
      <dl>
        <Fact term="operation">{version.op && <Breakable text={version.op} />}</Fact>
        <Fact term="path">{node.path && <Breakable text={node.path} />}</Fact>
        <Fact term="value">{version.value ?? ""}</Fact>
        <Fact term="stage">{version.stage && <><i class={`dot ${version.stage}`} aria-hidden="true" />{stageTitle(version.stage)}<small> {doc.runs.first[version.stage]}× for the first image</small></>}</Fact>
        <Fact term="cost">{node.kind === "call" ? <Cost version={version} /> : ""}</Fact>
        <Fact term="error">{doc.measured && node.kind === "call" ? <Off node={node} here={versionAt(node, doc.passes.length - 1) !== undefined} /> : ""}</Fact>
        <Fact term="module">{version.module ? (model.groups.has(version.module) ? <button type="button" class="plain" onClick={() => onGroup(version.module!)}><Breakable text={version.module} /></button> : <Breakable text={version.module} />) : ""}</Fact>
        <Fact term="source">{version.source ?? ""}</Fact>
      </dl>
      <History doc={doc} node={node} id={id} pass={pass} onPass={onPass} />
      {held.length > 0 && (
        <details open>
          <summary>Refused here <span class="count">{held.length}</span></summary>
          <ul class="events">
            {held.map(([number, reason], k) => <li key={k}><PassLink doc={doc} number={number} onPass={onPass} /> {reason}</li>)}
          </ul>
        </details>
      )}
      <Nodes doc={doc} pass={pass} title="Reads" ids={sources.filter((source) => !isWeight(doc.nodes[source]))} onNode={onNode} />
      <Nodes doc={doc} pass={pass} title="Weights" ids={sources.filter((source) => isWeight(doc.nodes[source]))} onNode={onNode} />
      <Nodes doc={doc} pass={pass} title="Read by" ids={readers.get(id) ?? []} onNode={onNode} />
      {node.kind === "call" && <><h3>Line</h3><pre tabIndex={0}>{version.text}</pre></>}
    </>
  );
}

function Cost({ version }: { version: Version }) {
  if (!version.flops && !version.bytes) return <>free (a view)</>;
  return <>{scaled(version.flops ?? 0, "flops")} · {scaled(version.bytes ?? 0, "bytes")}{version.joules !== undefined && <> · {scaled(version.joules, "joules")} <small>estimate</small></>}</>;
}

// How far the value is off the captured graph's, after all passes.
function Off({ node, here }: { node: Node; here: boolean }) {
  if (node.error === undefined) return <small>{here ? "not measured: the captured graph has no counterpart" : "not measured: no longer there after all passes"}</small>;
  if (node.error === "infinite") return <>infinite <small>finite in one of captured and result alone</small></>;
  return <>{node.error === 0 ? "0" : node.error.toExponential(1)} <small>of the captured graph's largest value, measured after all passes</small></>;
}

function PassLink({ doc, number, onPass }: { doc: Document; number: number; onPass: (pass: number) => void }) {
  return <button type="button" class="plain" onClick={() => onPass(number)}>{number} {name(doc, number)}</button>;
}

const DONE: Record<Kind, string> = { removed: "removed it", added: "added it", moved: "moved it", changed: "changed it" };

function History({ doc, node, id, pass, onPass }: { doc: Document; node: Node; id: number; pass: number; onPass: (pass: number) => void }) {
  const events = doc.passes.flatMap((entry) => KINDS.filter((kind) => entry.changes[kind].includes(id)).map((kind) => [entry.number, kind] as const));
  const rules = new Set(nearest(node, pass).rules ?? []);
  return (
    <details open>
      <summary>Passes that touched it <span class="count">{events.length}</span></summary>
      {events.length === 0 ? <p class="note">none: as captured</p> : (
        <ul class="events">
          {events.map(([number, kind], k) => (
            <li key={k} class={number === pass ? "now" : undefined}>
              <span class={`chip ${kind}`} aria-hidden="true">{SIGNS[kind]}</span>
              <PassLink doc={doc} number={number} onPass={onPass} /> {DONE[kind]}{described(node, number, kind)}
            </li>
          ))}
        </ul>
      )}
      {rules.size > 0 && <p class="note">made by {[...rules].join(", ")}</p>}
    </details>
  );
}

function described(node: Node, number: number, kind: Kind): string {
  const before = versionAt(node, number - 1), after = versionAt(node, number);
  if (kind === "moved" && before?.stage && after?.stage) return `: ${stageTitle(before.stage)} → ${stageTitle(after.stage)}`;
  if (kind === "changed" && before?.value !== after?.value) return `: ${before?.value} → ${after?.value}`;
  return kind === "changed" ? ": other arguments" : "";
}

// -- a module --------------------------------------------------------------------------------------------------------

function GroupDetails({ doc, pass, group, open, onToggle, onClose, onGroup, onNode }: Props & { group: Group }) {
  const sums = useMemo(() => {
    const found = { before: { flops: 0, bytes: 0 }, after: { flops: 0, bytes: 0 } };
    const walk = (at: Group): void => {
      for (const leaf of at.leaves) {
        for (const side of ["before", "after"] as const) {
          found[side].flops += leaf[side]?.flops ?? 0;
          found[side].bytes += leaf[side]?.bytes ?? 0;
        }
      }
      at.groups.forEach(walk);
    };
    walk(group);
    return found;
  }, [group]);
  const shown = open.has(group.path);
  return (
    <>
      <Head title={group.path.replace(/#\d+$/, "") || "(model)"} kind={`module, ${plural(group.size, "operation")}`} onClose={onClose}>
        <button type="button" class="tool" aria-expanded={shown} onClick={() => onToggle(group.path)}>{shown ? "Collapse" : "Expand"}</button>
      </Head>
      <dl>
        {(["flops", "bytes"] as const).map((metric) => (
          <Fact key={metric} term={METRICS[metric]}>
            {sums.before[metric] === sums.after[metric] ? scaled(sums.after[metric], metric) : <>{scaled(sums.before[metric], metric)} → {scaled(sums.after[metric], metric)} <small>{change(sums.before[metric], sums.after[metric])}</small></>}
          </Fact>
        ))}
        {(Object.entries(group.stages.after) as [Stage, number][]).map(([stage, count]) => (
          <Fact key={stage} term={stageTitle(stage)}><i class={`dot ${stage}`} aria-hidden="true" />{plural(count, "operation")}</Fact>
        ))}
        {KINDS.filter((kind) => group.marks[kind]).map((kind) => <Fact key={kind} term={kind}><span class={`chip ${kind}`}>{SIGNS[kind]}{group.marks[kind]}</span></Fact>)}
      </dl>
      {group.groups.length > 0 && (
        <details open>
          <summary>Modules <span class="count">{group.groups.length}</span></summary>
          <ul class="nodes">{group.groups.map((one) => <li key={one.path}><button type="button" class="link" onClick={() => onGroup(one.path)}><b>{one.label}</b><span>{plural(one.size, "operation")}</span></button></li>)}</ul>
        </details>
      )}
      <Nodes doc={doc} pass={pass} title="Operations" ids={group.leaves.map((leaf) => leaf.id)} onNode={onNode} />
    </>
  );
}

// -- a pass ----------------------------------------------------------------------------------------------------------

function PassDetails({ doc, pass, span, changes, onNode }: Props) {
  const whole = isWhole(doc, span), entry = doc.passes[pass], before = doc.passes[span.from];
  const stages = STAGES.filter((stage) => before.stages[stage] || entry.stages[stage]);
  const held = entry.refusals.reduce((sum, one) => sum + one.places.length, 0);
  return (
    <>
      <Head title={whole ? "all passes" : entry.name} kind={whole ? `from captured to pass ${pass}` : pass ? `pass ${pass} of ${doc.passes.length - 1}, ${entry.accuracy}` : "as captured"}>
        {!whole && entry.error && <p class="failed">Rolled back: {entry.error}</p>}
      </Head>
      <table>
        <caption class="hidden">Work of each stage, for one evaluation</caption>
        <thead><tr><th scope="col">stage</th><th scope="col">nodes</th><th scope="col">FLOP</th><th scope="col">bytes</th></tr></thead>
        <tbody>
          {stages.map((stage) => {
            const is = entry.stages[stage];
            return (
              <tr key={stage}>
                <th scope="row"><i class={`dot ${stage}`} aria-hidden="true" />{stageTitle(stage)}</th>
                <td>{is?.nodes ?? 0}</td><td>{scaled(is?.flops ?? 0, "flops").replace("FLOP", "").trim()}</td><td>{scaled(is?.bytes ?? 0, "bytes")}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {pass > 0 && !whole && <p class="note">{entry.fired.length ? `Fired at ${plural(entry.fired.length, "place")}` : "Fired nowhere"}{held ? `, held back at ${held}.` : "."}</p>}
      <Nodes doc={doc} pass={pass} title="Fired at" ids={whole ? [] : entry.fired} onNode={onNode} closed={entry.fired.length > 8} />
      {KINDS.map((kind) => <Nodes key={kind} doc={doc} pass={kind === "removed" ? span.from : pass} title={`${SIGNS[kind]} ${kind}`} ids={changes[kind]} onNode={onNode} closed={changes[kind].length > 12} />)}
      {!whole && entry.refusals.length > 0 && <h3>Why not elsewhere</h3>}
      {!whole && entry.refusals.map((one) => <Nodes key={one.reason} doc={doc} pass={pass} title={one.reason} ids={one.places} onNode={onNode} closed />)}
    </>
  );
}
