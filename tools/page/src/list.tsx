// The list of trajectories, by group or sorted.

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { short } from "./lines";
import { type Filter, rewardColumn, type Selection } from "./filter";
import { rewardColor, seconds, VirtualList } from "./parts";
import { fileLabel, type Rows } from "./rows";
import { visible } from "./text";

const ROW_HEIGHT = 30;
const SORTS = [
  ["", "by step"], ["-file", "last step first"], ["-reward", "highest reward"], ["reward", "lowest reward"], ["-sampled", "most tokens"],
  ["-turns", "most turns"], ["-calls", "most calls"], ["-wall_s", "longest time"], ["-tool_s", "longest in tools"],
] as const;

interface Props {
  rows: Rows;
  filter: Filter;
  selection: Selection;
  chosen: number;
  open: (row: number) => void;
  change: (part: Partial<Filter>) => void;
}

export function List({ rows, filter, selection, chosen, open, change }: Props): JSX.Element {
  const isGrouped = filter.sort === "" || filter.sort === "-file";
  const items = useMemo(() => withHeads(rows, selection.rows, isGrouped), [selection]);
  const reward = rewardColumn(rows, filter.reward);
  const limits = useMemo(() => ends(reward), [reward]);
  const at = useMemo(() => items.indexOf(chosen), [items, chosen]);
  return (
    <section class="list" aria-label="Trajectories">
      <header>
        <span role="status"><strong>{selection.rows.length.toLocaleString("en-US")}</strong> of {rows.num.toLocaleString("en-US")}</span>
        {selection.rows.length > 0 && <span class="muted"> · mean {filter.reward} {short(selection.mean)}</span>}
        <select aria-label="Order" value={filter.sort} onChange={(event) => change({ sort: event.currentTarget.value })}>
          {SORTS.map(([value, label]) => <option key={value} value={value}>{label}</option>)}
        </select>
      </header>
      {selection.rows.length === 0 && <p class="empty">{rows.num ? "No trajectory passes these filters." : "No trajectories yet."}</p>}
      <VirtualList
        num={items.length} height={ROW_HEIGHT} label="Trajectories" chosen={at}
        item={(index) =>
          items[index] < 0
            ? <Head {...{ rows, reward, limits, chosen, open }} group={-items[index] - 1} />
            : <Row {...{ rows, reward, limits, open }} row={items[index]} isChosen={items[index] === chosen} isFlat={!isGrouped} />
        }
      />
    </section>
  );
}

/** Rows, and -1 - group before the first row of each group of several. */
function withHeads(rows: Rows, chosen: Uint32Array, isGrouped: boolean): Int32Array {
  if (!isGrouped) return Int32Array.from(chosen);
  const items = new Int32Array(2 * chosen.length);
  let num = 0;
  let last = -1;
  for (const row of chosen) {
    const group = rows.group[row];
    if (group !== last && rows.groups[group].count > 1) items[num++] = -1 - group;
    last = group;
    items[num++] = row;
  }
  return items.slice(0, num);
}

interface Shared {
  rows: Rows;
  reward: Float64Array;
  limits: [number, number];
  open: (row: number) => void;
}

function Head({ rows, reward, limits, group, chosen, open }: Shared & { group: number; chosen: number }): JSX.Element {
  const { prompt, preview, first, count, file } = rows.groups[group];
  const members = Array.from({ length: count }, (_, i) => first + i);
  return (
    <div class="head">
      <span class="where">{fileLabel(rows.files[file])}</span>
      <span class="prompt" title={`${prompt}: ${visible(preview)}`}>{visible(preview) || prompt}</span>
      <Dots {...{ reward, limits, members, chosen, open }} title={(row) => `${rows.id(row)}: ${short(reward[row])}`} />
    </div>
  );
}

/** One button for each trajectory of a group, in the color of its reward. */
export function Dots({ reward, limits, members, chosen, open, title }: {
  reward: Float64Array; limits: [number, number]; members: number[]; chosen: number; open: (row: number) => void; title: (row: number) => string;
}): JSX.Element {
  return (
    <span class="dots">
      {members.map((row) => (
        <button
          key={row} type="button" tabIndex={-1} class={row === chosen ? "chosen" : ""} title={title(row)} aria-label={title(row)}
          style={{ background: rewardColor(reward[row], ...limits) }} onClick={() => open(row)}
        />
      ))}
    </span>
  );
}

function Row({ rows, reward, limits, row, isChosen, isFlat, open }: Shared & { row: number; isChosen: boolean; isFlat: boolean }): JSX.Element {
  const group = rows.groups[rows.group[row]];
  const isAlone = group.count === 1 || isFlat;
  const errors = rows.errorsOf(row);
  const stop = rows.codeName("stop", row);
  const value = reward[row];
  return (
    <a
      class={`row${isChosen ? " chosen" : ""}${group.count === 1 ? " alone" : ""}`} aria-current={isChosen} href={`#${encodeURIComponent(rows.fileName(row))}`}
      onClick={(event) => { event.preventDefault(); open(row); }}
    >
      <span class="score" style={{ "--reward": rewardColor(value, ...limits) }}>{Number.isNaN(value) ? "–" : Number(value.toPrecision(3))}</span>
      <span class="prompt" title={rows.id(row)}>
        {isAlone
          ? <><span class="muted">{fileLabel(rows.files[rows.file[row]])} · </span>{visible(group.preview) || rows.id(row)}</>
          : <>/{rows.numbers.sample[row]} <span class="muted">{visible(rows.endings[row])}</span></>}
      </span>
      {errors.length > 0 && <span class="badge bad" title={errors.join(", ")}>{errors[0]}{errors.length > 1 ? " …" : ""}</span>}
      {stop !== "finished" && <span class="badge">{stop}</span>}
      <span class="cell turns" title="turns, and calls of tools">{rows.numbers.turns[row]}t {rows.numbers.calls[row]}c</span>
      <span class="cell" title="sampled tokens">{rows.numbers.sampled[row].toLocaleString("en-US")}</span>
      <span class="cell" title="wall time">{seconds(rows.numbers.wall_s[row])}</span>
    </a>
  );
}

/** The lowest and the highest value of a column. */
export function ends(column: Float64Array): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  for (const value of column) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
