// Search over names, operations, modules and source lines.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { shortOp, versionAt, type Document, type Span } from "./document";
import type { Tree } from "./hierarchy";

export type Hit = { key: string; title: string; detail: string; node?: number; group?: string };
const SHOWN = 60;
const COMBOBOX = { role: "combobox" } as object;  // its type would want a datalist

export function find(doc: Document, model: Tree, span: Span, query: string): Hit[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const hits: [number, Hit][] = [];
  for (const group of model.groups.values()) {
    const path = group.path.toLowerCase();
    if (group.parent && words.every((word) => path.includes(word))) {
      hits.push([path === words[0] ? 0 : 3 + path.length / 1000, { key: `g${group.path}`, title: group.path, detail: `module of ${group.size}`, group: group.path }]);
    }
  }
  doc.nodes.forEach((node, id) => {
    const version = versionAt(node, span.to) ?? versionAt(node, span.from);  // removed ones are drawn on the left
    if (!version) return;
    const op = shortOp(node, version);
    const fields = [version.name, op, version.op, version.module, version.source, node.path].map((text) => (text ?? "").toLowerCase());
    if (!words.every((word) => fields.some((text) => text.includes(word)))) return;
    const [name] = fields;
    const rank = name === words[0] ? 0 : fields[1] === words[0] ? 1 : name.startsWith(words[0]) ? 2 : 4;
    hits.push([rank + id / 1e6, { key: `n${id}`, title: version.name, detail: [op, version.module, version.source].filter(Boolean).join(" · "), node: id }]);
  });
  return hits.sort(([a], [b]) => a - b).map(([, hit]) => hit);
}

type Props = { doc: Document; model: Tree; span: Span; input: { current: HTMLInputElement | null }; onPick: (hit: Hit) => void };

export function Search({ doc, model, span, input, onPick }: Props) {
  const [query, setQuery] = useState("");
  const [open, setOpen] = useState(false);
  const [at, setAt] = useState(0);
  const hits = useMemo(() => (open ? find(doc, model, span, query) : []), [doc, model, span, query, open]);
  const list = useRef<HTMLUListElement>(null);
  useEffect(() => setAt(0), [query]);
  useEffect(() => list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" }), [at]);
  const pick = (hit: Hit | undefined): void => {
    if (!hit) return;
    setOpen(false);
    onPick(hit);
    input.current?.blur();
  };
  const shown = hits.slice(0, SHOWN);
  const key = (event: KeyboardEvent): void => {
    if (event.key === "ArrowDown") setAt(Math.min(at + 1, shown.length - 1));
    else if (event.key === "ArrowUp") setAt(Math.max(at - 1, 0));
    else if (event.key === "Enter") pick(shown[at]);
    else if (event.key === "Escape") {
      setOpen(false);
      setQuery("");
      input.current?.blur();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const listing = open && query.trim() !== "";
  return (
    <div class="search" role="search">
      <input
        ref={input} type="search" placeholder="Search name, op, module, line" aria-label="Search nodes" {...COMBOBOX}
        aria-expanded={listing} aria-controls="hits" aria-autocomplete="list" autocomplete="off" spellcheck={false}
        aria-activedescendant={listing && shown[at] ? `hit-${at}` : undefined} value={query}
        onInput={(event) => { setQuery(event.currentTarget.value); setOpen(true); }}
        onFocus={() => setOpen(true)} onBlur={() => setOpen(false)} onKeyDown={key}
      />
      <kbd aria-hidden="true">/</kbd>
      {listing && (
        <div class="hits">
          <ul id="hits" role="listbox" aria-label="Found" ref={list}>
            {shown.map((hit, k) => (
              <li
                key={hit.key} id={`hit-${k}`} role="option" aria-selected={k === at}
                onMouseDown={(event) => { event.preventDefault(); pick(hit); }} onMouseEnter={() => setAt(k)}
              >
                <b>{hit.title}</b> <span>{hit.detail}</span>
              </li>
            ))}
          </ul>
          <p role="status">{hits.length === 0 ? "nothing found" : hits.length > SHOWN ? `${SHOWN} of ${hits.length} shown` : `${hits.length} found`}</p>
        </div>
      )}
    </div>
  );
}
