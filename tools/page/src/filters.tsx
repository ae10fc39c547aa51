// The panel with the filters of the list.

import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { short } from "./lines";
import { type Counts, type Facet, type Filter, NO_FILTER, type Selection } from "./filter";
import { fileLabel, type Rows } from "./rows";

const TITLES: Record<Facet, string> = {
  file: "Step", set: "Evaluation set", task: "Task", stop: "Stop reason", exclusion: "Left out of training", error: "Tool errors",
};
const MANY = 12;

interface Props {
  rows: Rows;
  filter: Filter;
  selection: Selection;
  /** Share of the trajectories searched so far, 1 when done. */
  searched: number;
  change: (part: Partial<Filter>) => void;
}

export function Filters({ rows, filter, selection, searched, change }: Props): JSX.Element {
  return (
    <form class="filters" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
      <label class="search">
        <input
          id="search" type="search" placeholder="Text   ( / )" title='Words in any order, or "an exact text"' value={filter.text} aria-label="Text"
          onInput={(event) => change({ text: event.currentTarget.value })}
        />
      </label>
      {searched < 1 && <progress value={searched} aria-label="searching" />}
      <Reward {...{ rows, filter, selection, change }} />
      <StepFilter {...{ rows, filter, change }} counts={selection.counts.file} />
      {(["set", "task", "stop", "error", "exclusion"] as const).map((facet) => (
        <FacetFilter key={facet} facet={facet} chosen={filter[facet]} counts={selection.counts} choose={(value) => change({ [facet]: value })} />
      ))}
      {numFilters(filter) > 0 && <button type="button" class="clear" onClick={() => change({ ...NO_FILTER, sort: filter.sort })}>Clear all filters</button>}
    </form>
  );
}

/** How many filters are set. */
export function numFilters(filter: Filter): number {
  const isSet = (name: keyof Filter): boolean => name !== "sort" && name !== "reward" && filter[name] !== NO_FILTER[name];
  return (Object.keys(filter) as (keyof Filter)[]).filter(isSet).length;
}

function Reward({ rows, filter, selection, change }: Omit<Props, "searched">): JSX.Element {
  const most = Math.max(1, ...selection.bins);
  const { low, high } = selection;
  const edge = (bin: number): string => String(Number((low + ((high - low) * bin) / selection.bins.length).toPrecision(6)));
  return (
    <fieldset>
      <legend>Reward</legend>
      {rows.rewards.size > 0 && (
        <select aria-label="Which reward" value={filter.reward} onChange={(event) => change({ reward: event.currentTarget.value, min: "", max: "" })}>
          <option value="score">score (all parts together)</option>
          {[...rows.rewards.keys()].map((name) => <option key={name} value={name}>{name}</option>)}
        </select>
      )}
      {high > low && (
        <div class="bars" role="group" aria-label="Distribution">
          {selection.bins.map((count, bin) => (
            <button
              key={bin} type="button" title={`${short(Number(edge(bin)))} to ${short(Number(edge(bin + 1)))}: ${count}`}
              disabled={count === 0} onClick={() => change({ min: edge(bin), max: edge(bin + 1) })}
            >
              <i style={{ height: count ? `${Math.max(6, (100 * count) / most)}%` : "0" }} />
            </button>
          ))}
        </div>
      )}
      <div class="limits">
        <input
          aria-label="Lowest" placeholder={Number.isFinite(low) ? short(low) : "from"} value={filter.min} inputMode="decimal"
          onInput={(event) => change({ min: event.currentTarget.value })}
        />
        <span>to</span>
        <input
          aria-label="Highest" placeholder={Number.isFinite(high) ? short(high) : "to"} value={filter.max} inputMode="decimal"
          onInput={(event) => change({ max: event.currentTarget.value })}
        />
        <button type="button" class={filter.min === "missing" ? "chosen" : ""} title="Trajectories without this reward"
          onClick={() => change(filter.min === "missing" ? { min: "" } : { min: "missing", max: "" })}>none</button>
      </div>
    </fieldset>
  );
}

function StepFilter({ rows, filter, counts, change }: {
  rows: Rows; filter: Filter; counts: Map<string, number>; change: Props["change"];
}): JSX.Element {
  const kinds = new Set(rows.files.map((file) => file.kind));
  return (
    <fieldset>
      <legend>{TITLES.file}</legend>
      <select aria-label="Step" value={filter.file} onChange={(event) => change({ file: event.currentTarget.value })}>
        <option value="">all</option>
        {kinds.size > 1 && <option value="step">all training steps</option>}
        {kinds.size > 1 && <option value="eval">all evaluations</option>}
        {rows.files.map((file) => (
          <option key={file.name} value={file.name}>{fileLabel(file)} ({counts.get(file.name)})</option>
        ))}
      </select>
    </fieldset>
  );
}

function FacetFilter({ facet, chosen, counts, choose }: {
  facet: Facet; chosen: string; counts: Counts; choose: (value: string) => void;
}): JSX.Element | null {
  const list = useRef<HTMLUListElement>(null);
  const found = [...counts[facet]].filter(([name, count]) => name !== "" && (count > 0 || name === chosen));
  if (facet !== "error") found.sort((a, b) => b[1] - a[1]);
  if (found.length === 0 || (facet === "error" && found.length === 1 && !chosen)) return null;
  const most = Math.max(...found.map(([, count]) => count));
  return (
    <fieldset>
      <legend>{TITLES[facet]}</legend>
      <ul class={found.length > MANY ? "facet many" : "facet"} ref={list}>
        {found.map(([name, count]) => (
          <li key={name}>
            <button type="button" aria-pressed={name === chosen} class={name === chosen ? "chosen" : ""} onClick={() => choose(name === chosen ? "" : name)}>
              <span class="share" style={{ width: `${(100 * count) / most}%` }} />
              <span class="name">{name}</span>
              <span class="count">{count.toLocaleString("en-US")}</span>
            </button>
          </li>
        ))}
      </ul>
    </fieldset>
  );
}
