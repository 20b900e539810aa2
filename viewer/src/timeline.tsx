// The passes, as a list: what each changed and what is left.
import { useEffect, useMemo, useRef } from "preact/hooks";
import { changesOf, isWhole, KINDS, type Document, type Kind, type Metric, type Span, type Sums, type Which } from "./document";
import { change, METRICS } from "./format";
import { Breakable } from "./text";
import { SIGNS } from "./theme";

type Props = { doc: Document; span: Span; which: Which; onPass: (pass: number) => void; onWhole: () => void };

export function Timeline({ doc, span, which, onPass, onWhole }: Props) {
  const pass = isWhole(doc, span) ? -1 : span.to, last = doc.passes.length - 1;
  const all = useMemo(() => changesOf(doc, { from: 0, to: last }), [doc]);
  const list = useRef<HTMLOListElement>(null);
  useEffect(() => list.current?.querySelector('[aria-current="step"]')?.scrollIntoView({ block: "nearest" }), [span]);
  return (
    <nav class="timeline" aria-label="Passes">
      <h2>Passes</h2>
      <ol ref={list}>
        {last > 1 && (
          <li>
            <Row
              number="" title="all passes" chosen={pass === -1} changes={all} onClick={onWhole}
              before={doc.passes[0].image[which]} after={doc.passes[last].image[which]} otherwise=""
            />
          </li>
        )}
        {doc.passes.map((entry, number) => {
          const held = entry.refusals.reduce((sum, one) => sum + one.places.length, 0);
          return (
            <li key={number}>
              <Row
                number={String(number)} title={entry.name} chosen={number === pass} changes={entry.changes} failed={entry.error !== null}
                before={number ? doc.passes[number - 1].image[which] : null} after={entry.image[which]} onClick={() => onPass(number)}
                otherwise={number === 0 ? "" : held ? `held back at ${held}` : "nothing to do"}
              />
            </li>
          );
        })}
      </ol>
    </nav>
  );
}

type RowProps = {
  number: string; title: string; chosen: boolean; changes: Record<Kind, number[]>; failed?: boolean; before: Sums | null; after: Sums; otherwise: string;
  onClick: () => void;
};

function Row({ number, title, chosen, changes, failed, before, after, otherwise, onClick }: RowProps) {
  const kinds = KINDS.filter((kind) => changes[kind].length);
  const deltas = (Object.keys(METRICS) as Metric[]).map((metric) => [metric, before ? change(before[metric], after[metric]) : ""] as const).filter(([, text]) => text);
  const [name, options] = title.split(/(?=\{)/);
  return (
    <button type="button" class={`pass${kinds.length || !before ? "" : " idle"}`} aria-current={chosen ? "step" : undefined} onClick={onClick}>
      <span class="number">{number}</span>
      <span class="title"><Breakable text={name} />{options && <small> <Breakable text={options.slice(1, -1)} /></small>}</span>
      {kinds.length > 0 && (
        <span class="chips">
          {kinds.map((kind) => (
            <span key={kind} class={`chip ${kind}`} title={`${changes[kind].length} ${kind}`}>
              <span aria-hidden="true">{SIGNS[kind]}{changes[kind].length}</span>
              <span class="hidden">{changes[kind].length} {kind}</span>
            </span>
          ))}
        </span>
      )}
      <span class="deltas">
        {failed ? <span class="failed">rolled back</span> : deltas.length
          ? deltas.map(([metric, text]) => <span key={metric} class={text[0] === "−" ? "less" : "more"}>{METRICS[metric]} {text}</span>)
          : kinds.length ? "same work" : otherwise}
      </span>
    </button>
  );
}
