// The page: its navigation, its keys, and the view that the address names.

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { isServed } from "./chunks";
import { Detail } from "./detail";
import { EvaluationsView } from "./evaluations";
import { type Filter, select } from "./filter";
import { Filters, numFilters } from "./filters";
import { StepTimeline } from "./lanes";
import { List } from "./list";
import { OverviewView } from "./overview";
import { useLoaded } from "./parts";
import { type Place, TABS, usePlace, type View, VIEWS } from "./place";
import type { Store } from "./store";
import { parseQuery } from "./words";

const KEYS: [string, string][] = [
  ["j  k", "next and previous trajectory"], ["J  K", "next and previous group"], ["/", "filter by text"],
  ["1 … 5", "view of the trajectory"], ["g", "overview"], ["t", "trajectories"], ["e", "evaluations"], ["Esc", "back to the list"], ["?", "this list"],
];

export function App({ store }: { store: Store }): JSX.Element {
  const [place, go] = usePlace();
  const [version, setVersion] = useState(0);
  const [help, setHelp] = useState(false);
  useEffect(() => void store.follow(() => setVersion((v) => v + 1)), [store]);
  useEffect(() => {
    const listen = (event: KeyboardEvent): void => {
      if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey) return;
      const views: Record<string, View> = { g: "overview", t: "trajectories", e: "evaluations" };
      if (event.key === "?") setHelp((shown) => !shown);
      else if (event.key === "Escape") setHelp(false);
      else if (views[event.key]) go({ view: views[event.key], file: "", id: "" });
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, []);
  const { overview } = store;
  const shown: Record<View, boolean> = {
    overview: true, trajectories: true, evaluations: true, timeline: store.timelineSteps.length > 0, configuration: true,
  };
  return (
    <div class="app">
      <header class="top">
        <h1 title={overview.path}>{overview.name}</h1>
        {isServed && <span class="badge live">live</span>}
        <nav aria-label="Views">
          {VIEWS.filter((view) => shown[view]).map((view) => (
            <a key={view} href={`#${view}`} aria-current={view === place.view ? "page" : undefined}
              onClick={(event) => { event.preventDefault(); go({ view, file: "", id: "" }); }}>
              {view}{view === "overview" && overview.warnings.length > 0 && <span class="badge warn">{overview.warnings.length}</span>}
            </a>
          ))}
        </nav>
        <button type="button" class="help" aria-label="Keys" title="Keys ( ? )" onClick={() => setHelp(!help)}>?</button>
      </header>
      {help && (
        <aside class="keys" aria-label="Keys">
          <dl>{KEYS.map(([key, meaning]) => [<dt key={key}><kbd>{key}</kbd></dt>, <dd>{meaning}</dd>])}</dl>
        </aside>
      )}
      {place.view === "overview" && <OverviewView store={store} go={go} />}
      {place.view === "trajectories" && <Trajectories {...{ store, place, go, version }} />}
      {place.view === "evaluations" && <EvaluationsView store={store} go={go} />}
      {place.view === "timeline" && <TimelineView {...{ store, place, go }} />}
      {place.view === "configuration" && (
        <main class="overview"><h2>config.yaml</h2><pre class="file">{overview.config}</pre><h2>versions.txt</h2><pre class="file">{overview.versions}</pre></main>
      )}
    </div>
  );
}

function Trajectories({ store, place, go, version }: {
  store: Store; place: Place; go: (change: Partial<Place>, replace?: boolean) => void; version: number;
}): JSX.Element {
  const { rows } = store;
  const { filter } = place;
  const [hits, searched] = useSearch(store, filter.text, version);
  useEffect(() => {
    if (store.isReading) return undefined;
    const timer = setTimeout(() => store.words.load(store.overview.contents.blocks), 100); // before the first search
    return () => clearTimeout(timer);
  }, [store, version]);
  const selection = useMemo(() => select(rows, filter, hits), [JSON.stringify(filter), hits, version]);
  const row = useMemo(() => (place.id ? rows.find(place.file, place.id) : -1), [place.file, place.id, version]);
  const open = (next: number): void => go({ view: "trajectories", file: rows.fileName(next), id: rows.id(next) });
  const close = (): void => go({ view: "trajectories", file: "", id: "" });
  const change = (part: Partial<Filter>): void => go({ filter: { ...filter, ...part } }, true);
  useListKeys((event) => {
    const at = selection.rows.indexOf(row);
    const step = { j: 1, k: -1 }[event.key];
    const groupStep = { J: 1, K: -1 }[event.key];
    if (step !== undefined && selection.rows.length) open(selection.rows[clamp(at + (at < 0 ? 1 : step), selection.rows.length)]);
    else if (groupStep !== undefined && selection.rows.length) open(otherGroup(selection.rows, rows.group, at, groupStep));
    else if (event.key === "Escape") close();
    else if (event.key === "/") document.getElementById("search")?.focus();
    else if (row >= 0 && TABS[Number(event.key) - 1]) go({ tab: TABS[Number(event.key) - 1] });
    else return;
    event.preventDefault();
  });
  return (
    <main class={`panes${row >= 0 ? " has-detail" : ""}`}>
      <details class="filter-pane" open={matchMedia("(min-width: 900px)").matches}>
        <summary>Filters{numFilters(filter) > 0 && ` (${numFilters(filter)})`}</summary>
        <Filters {...{ rows, filter, selection, searched, change }} />
      </details>
      <List {...{ rows, filter, selection, open, change }} chosen={row} />
      {row >= 0
        ? <Detail store={store} row={row} tab={place.tab} text={filter.text} open={open} setTab={(tab) => go({ tab })} close={close} />
        : <section class="detail none"><p class="hint">{store.isReading ? "Reading …" : place.id ? `${place.file} has no trajectory ${place.id}.` : "Choose a trajectory, or press j."}</p></section>}
    </main>
  );
}

function TimelineView({ store, place, go }: { store: Store; place: Place; go: (change: Partial<Place>) => void }): JSX.Element {
  const steps = store.timelineSteps;
  const step = steps.includes(Number(place.file)) && place.file ? Number(place.file) : steps[steps.length - 1];
  const spans = useLoaded(() => store.timeline(step), [step]);
  const open = (id: string): void => go({ view: "trajectories", file: `step_${String(step).padStart(6, "0")}`, id, tab: "timeline" });
  return (
    <main class="overview">
      <h2>
        Timeline of step{" "}
        <select aria-label="Step" value={step} onChange={(event) => go({ file: event.currentTarget.value })}>
          {steps.map((one) => <option key={one} value={one}>{one}</option>)}
        </select>
      </h2>
      {Array.isArray(spans) ? (spans.length ? <StepTimeline spans={spans} open={open} /> : <p class="hint">Nothing was recorded.</p>) : spans ? <p class="hint bad">{spans.message}</p> : <p class="hint">Reading …</p>}
    </main>
  );
}

/** The rows that match the text, and the share of the search that is done. The last result stays until the next. */
function useSearch(store: Store, text: string, version: number): [Uint8Array | null, number] {
  const [state, setState] = useState<{ hits: Uint8Array | null; share: number }>({ hits: null, share: 1 });
  useEffect(() => {
    const { signal, abort } = abortable();
    const { words, exact } = parseQuery(text);
    const isEmpty = words.length === 0 && exact.length === 0;
    if (isEmpty) setState({ hits: null, share: 1 });
    else void store.search(text, (hits, share) => setState({ hits, share }), signal).catch((error) => console.error(error));
    return abort;
  }, [store, text, version]);
  return [state.hits, state.share];
}

function abortable(): { signal: AbortSignal; abort: () => void } {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

/** Call the newest listener for every key that is not typed into a field. */
function useListKeys(listener: (event: KeyboardEvent) => void): void {
  const current = useRef(listener);
  current.current = listener;
  useEffect(() => {
    const listen = (event: KeyboardEvent): void => {
      if (event.key === "Escape" && isTyping(event)) (event.target as HTMLElement).blur();
      else if (!isTyping(event) && !event.ctrlKey && !event.metaKey && !event.altKey) current.current(event);
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, []);
}

function isTyping(event: KeyboardEvent): boolean {
  return event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
}

function clamp(index: number, length: number): number {
  return Math.max(0, Math.min(length - 1, index));
}

/** The first shown row of the next or previous group that has one. */
function otherGroup(shown: Uint32Array, group: Uint32Array, at: number, step: number): number {
  if (at < 0) return shown[0];
  let next = at;
  while (next >= 0 && next < shown.length && group[shown[next]] === group[shown[at]]) next += step;
  next = clamp(next, shown.length);
  while (next > 0 && group[shown[next - 1]] === group[shown[next]]) next -= 1;
  return shown[next];
}
