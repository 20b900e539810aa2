// What an image costs, from the captured graph to the last pass: totals at the ends, and what each pass took or gave.
import { useEffect, useRef, useState } from "preact/hooks";
import type { Document, Metric, Which } from "./document";
import { change, METRICS, plural, same, scaled } from "./format";
import { name } from "./graph";

type Props = {
  doc: Document; pass: number; metric: Metric; which: Which;
  onPass: (pass: number) => void; onMetric: (metric: Metric) => void; onWhich: (which: Which) => void;
};

export function Waterfall(props: Props) {
  const { doc, metric, which } = props;
  const metrics = (Object.keys(METRICS) as Metric[]).filter((key) => doc.passes[0].image.first[key] !== null);
  const first = doc.passes[0].image[which][metric], last = doc.passes[doc.passes.length - 1].image[which][metric];
  const times = doc.calls === 1 ? "one call" : `${plural(doc.steps, "step")}, ${plural(doc.calls, "call")}`;
  return (
    <section class="waterfall" aria-label="Cost per image">
      <header>
        <h2>Cost per image</h2>
        <Switch label="Quantity" value={metric} options={metrics.map((key) => [key, METRICS[key]])} onChange={props.onMetric} />
        <Switch label="Image" value={which} options={[["first", "first image"], ["later", "later images"]]} onChange={props.onWhich} />
        <p class="note">
          <b>{scaled(first, metric)} → {scaled(last, metric)}</b> {change(first, last)} <span title={runs(doc, which)}>· {times}</span>
          {metric === "joules" && <span title={doc.energy}> · {doc.energy.split(":")[0]}</span>}
        </p>
      </header>
      <Chart {...props} />
    </section>
  );
}

const runs = (doc: Document, which: Which): string =>
  `Runs per image: ${Object.entries(doc.runs[which]).map(([stage, count]) => `${stage.replace("_", " × ")} ${count}×`).join(", ")}`;

function Switch<T extends string>({ label, value, options, onChange }: { label: string; value: T; options: (readonly [T, string])[]; onChange: (value: T) => void }) {
  return (
    <div class="switch" role="group" aria-label={label}>
      {options.map(([key, text]) => (
        <button key={key} type="button" aria-pressed={key === value} onClick={() => onChange(key)}>{text}</button>
      ))}
    </div>
  );
}

const TOP = 8, FOOT = 20, LEFT = 62, RIGHT = 8;

function Chart({ doc, pass, metric, which, onPass }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [size, setSize] = useState({ width: 800, height: 110 });
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setSize({ width: entry.contentRect.width, height: entry.contentRect.height }));
    watch.observe(box.current!);
    return () => watch.disconnect();
  }, []);
  const values: number[] = [];
  for (const entry of doc.passes) {
    const value = entry.image[which][metric] ?? 0, last = values[values.length - 1];
    values.push(last !== undefined && same(last, value) ? last : value);
  }
  const high = Math.max(...values), low = Math.min(...values);
  // Cut off below what varies, and said so: changes of a per cent would be invisible above zero.
  const floor = high === low ? 0 : Math.max(0, low - 0.35 * (high - low));
  const top = high === floor ? floor + 1 : high + 0.04 * (high - floor);
  const y = (value: number): number => TOP + (size.height - TOP - FOOT) * (1 - (value - floor) / (top - floor));
  const step = (size.width - LEFT - RIGHT) / (values.length + 1);
  const bar = Math.min(44, step * 0.68);
  const bars = [...values.map((value, k) => ({ k, from: k ? values[k - 1] : floor, to: value, total: k === 0 })), { k: values.length, from: floor, to: values[values.length - 1], total: true }];
  return (
    <div class="chart" ref={box}>
      <svg width={size.width} height={size.height} role="img" aria-label={`${METRICS[metric]} per image over the passes: ${doc.passes.map((entry, k) => `${entry.name} ${scaled(values[k], metric)}`).join(", ")}`}>
        {[high, (high + low) / 2, low].slice(0, high > low ? 3 : 1).map((value) => (
          <g key={value} class="grid">
            <line x1={LEFT} x2={size.width - RIGHT} y1={y(value)} y2={y(value)} />
            <text x={LEFT - 6} y={y(value) + 4} text-anchor="end">{scaled(value, metric)}</text>
          </g>
        ))}
        {floor > 0 && <text class="cut" x={LEFT - 6} y={size.height - FOOT + 4} text-anchor="end">axis cut</text>}
        <line class="axis" x1={LEFT} x2={size.width - RIGHT} y1={size.height - FOOT} y2={size.height - FOOT} stroke-dasharray={floor > 0 ? "3 3" : undefined} />
        {bars.map(({ k, from, to, total }) => {
          const x = LEFT + step * (k + 0.5), upper = y(Math.max(from, to)), height = Math.max(2, Math.abs(y(from) - y(to)));
          const chosen = k === pass;
          const kind = total ? "total" : to < from ? "less" : to > from ? "more" : "same";
          const text = k === values.length ? "result" : k === 0 ? "captured" : `${k} ${name(doc, k)}`;
          const moved = total ? scaled(to, metric) : `${to === from ? "no change" : `${to < from ? "−" : "+"}${scaled(Math.abs(to - from), metric)}`}, ${scaled(to, metric)} left`;
          return (
            <g key={k} class={`bar ${kind}${chosen ? " chosen" : ""}`} onClick={() => onPass(k)}>
              <title>{text}: {moved}</title>
              <rect class="hit" x={x - step / 2} y={0} width={step} height={size.height} />
              {k > 0 && <line class="link" x1={x - step + bar / 2} x2={x - bar / 2} y1={y(from === floor && total ? to : from)} y2={y(from === floor && total ? to : from)} />}
              <rect class="value" x={x - bar / 2} y={total ? y(to) : upper} width={bar} height={total ? Math.max(2, size.height - FOOT - y(to)) : height} rx={1.5} />
              <text x={x} y={size.height - 5} text-anchor="middle">{k === values.length ? "end" : k}</text>
            </g>
          );
        })}
      </svg>
    </div>
  );
}
