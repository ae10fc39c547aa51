// Which trajectories the list shows, in which order, and how many each choice of a filter would show.

import type { CodeName, NumberName, Rows } from "./rows";

/** All texts, because the filter is also the query of the page's address. */
export interface Filter {
  text: string;
  /** `` all, `step` or `eval`, or a file's name. */
  file: string;
  task: string;
  set: string;
  stop: string;
  /** Why training left it out. */
  exclusion: string;
  /** `` all, `any` error, `none`, or a status. */
  error: string;
  /** `score` or the name of a reward, limited by `min` and `max`; `missing` as `min`: those without. */
  reward: string;
  min: string;
  max: string;
  sort: string;
}

export const NO_FILTER: Filter = {
  text: "", file: "", task: "", set: "", stop: "", exclusion: "", error: "", reward: "score", min: "", max: "", sort: "",
};

export const FACETS = ["file", "set", "task", "stop", "exclusion", "error"] as const;
export type Facet = (typeof FACETS)[number];
export type Counts = Record<Facet, Map<string, number>>;

export interface Selection {
  rows: Uint32Array;
  counts: Counts;
  /** Mean of the chosen reward over the rows that have it. */
  mean: number;
  /** Rows by the chosen reward, 20 bins from `low` to `high`. */
  bins: number[];
  low: number;
  high: number;
}

/** Apply a filter. `hits` has 1 for the rows that match the text; null without one. */
export function select(rows: Rows, filter: Filter, hits: Uint8Array | null): Selection {
  const tests = makeTests(rows, filter);
  const reward = rewardColumn(rows, filter.reward);
  const [low, high] = limits(filter);
  const isMissing = filter.min === "missing";
  const chosen = new Uint32Array(rows.num);
  const counts = makeCounters(rows);
  let num = 0;
  for (let row = 0; row < rows.num; row++) {
    if (hits && !hits[row]) continue;
    const value = reward[row];
    if (isMissing ? !Number.isNaN(value) : !(value >= low && value <= high) && (low > -Infinity || high < Infinity)) continue;
    let failed = 0;
    let last = -1;
    for (let i = 0; i < tests.length && failed < 2; i++) {
      if (!tests[i](row)) {
        failed += 1;
        last = i;
      }
    }
    if (failed === 0) {
      chosen[num++] = row;
      for (const count of counts.add) count(row);
    } else if (failed === 1) counts.add[last](row);
  }
  const selected = sorted(rows, chosen.slice(0, num), filter);
  return { rows: selected, counts: counts.finish(), ...distribution(reward, selected) };
}

/** The values of `score` or of a reward; NaN where a trajectory has none. */
export function rewardColumn(rows: Rows, name: string): Float64Array {
  return rows.rewards.get(name) ?? rows.numbers.score;
}

function limits(filter: Filter): [number, number] {
  const number = (text: string, otherwise: number): number =>
    text === "" || Number.isNaN(Number(text)) ? otherwise : Number(text);
  return [number(filter.min, -Infinity), number(filter.max, Infinity)];
}

/** One test for each facet, in their order. */
function makeTests(rows: Rows, filter: Filter): ((row: number) => boolean)[] {
  const all = (): boolean => true;
  const code = (column: CodeName, wanted: string): ((row: number) => boolean) => {
    if (wanted === "") return all;
    const number = rows.names.indexOf(wanted);
    return (row) => rows.codes[column][row] === number;
  };
  const file = (row: number): boolean => {
    const { kind, name } = rows.files[rows.file[row]];
    return filter.file === kind || filter.file === name;
  };
  const bit = 1 << rows.errorNames.indexOf(filter.error);
  const error = (row: number): boolean => {
    if (filter.error === "any") return rows.errors[row] !== 0;
    if (filter.error === "none") return rows.errors[row] === 0;
    return rows.errorNames.includes(filter.error) && (rows.errors[row] & bit) !== 0;
  };
  return [
    filter.file ? file : all, code("set", filter.set), code("task", filter.task), code("stop", filter.stop),
    code("exclusion", filter.exclusion), filter.error ? error : all,
  ];
}

function makeCounters(rows: Rows): { add: ((row: number) => void)[]; finish: () => Counts } {
  const files = new Uint32Array(rows.files.length);
  const zeros = (): number[] => rows.names.map(() => 0);
  const codes = { set: zeros(), task: zeros(), stop: zeros(), exclusion: zeros() };
  const errors = rows.errorNames.map(() => 0);
  let any = 0;
  let none = 0;
  const add = [
    (row: number) => void (files[rows.file[row]] += 1),
    (row: number) => void (codes.set[rows.codes.set[row]] += 1),
    (row: number) => void (codes.task[rows.codes.task[row]] += 1),
    (row: number) => void (codes.stop[rows.codes.stop[row]] += 1),
    (row: number) => void (codes.exclusion[rows.codes.exclusion[row]] += 1),
    (row: number) => {
      const bits = rows.errors[row];
      if (bits === 0) none += 1;
      else any += 1;
      for (let bit = 0; bit < errors.length; bit++) if (bits & (1 << bit)) errors[bit] += 1;
    },
  ];
  const named = (column: number[]): Map<string, number> =>
    new Map(column.map((count, code) => [rows.names[code], count] as const).filter(([, count]) => count > 0));
  const finish = (): Counts => ({
    file: new Map(rows.files.map(({ name }, i) => [name, files[i]])),
    set: named(codes.set),
    task: named(codes.task),
    stop: named(codes.stop),
    exclusion: named(codes.exclusion),
    error: new Map([["any", any], ["none", none], ...rows.errorNames.map((name, bit) => [name, errors[bit]] as const)]),
  });
  return { add, finish };
}

function sorted(rows: Rows, chosen: Uint32Array, filter: Filter): Uint32Array {
  if (!filter.sort) return chosen;
  const isDown = filter.sort.startsWith("-");
  const name = isDown ? filter.sort.slice(1) : filter.sort;
  if (name === "file") return chosen.sort((a, b) => rows.file[b] - rows.file[a] || a - b);
  const column = name === "reward" ? rewardColumn(rows, filter.reward) : rows.numbers[name as NumberName];
  if (!column) return chosen;
  const sign = isDown ? -1 : 1;
  const key = (row: number): number => (Number.isNaN(column[row]) ? Infinity : sign * column[row]);
  return chosen.sort((a, b) => key(a) - key(b) || a - b);
}

function distribution(column: Float64Array, chosen: Uint32Array): Omit<Selection, "rows" | "counts"> {
  let [low, high, sum, num] = [Infinity, -Infinity, 0, 0];
  for (const row of chosen) {
    const value = column[row];
    if (Number.isNaN(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
    sum += value;
    num += 1;
  }
  const bins = new Array<number>(20).fill(0);
  const width = (high - low) / bins.length || 1;
  for (const row of chosen) {
    const value = column[row];
    if (!Number.isNaN(value)) bins[Math.min(bins.length - 1, Math.floor((value - low) / width))] += 1;
  }
  return { mean: num ? sum / num : NaN, bins, low, high };
}
