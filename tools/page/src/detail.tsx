// One trajectory: its head, and the views of it.

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { Conversation } from "./conversation";
import { GroupTimeline } from "./lanes";
import { short } from "./lines";
import { Dots, ends } from "./list";
import { useLoaded, seconds, Text } from "./parts";
import { type Tab, TABS } from "./place";
import { fileLabel } from "./rows";
import type { Store } from "./store";
import { TokenView } from "./tokens";
import type { Trajectory } from "./types";
import { parseQuery } from "./words";

const BESIDE = 3;

interface Props {
  store: Store;
  row: number;
  tab: Tab;
  text: string;
  open: (row: number) => void;
  setTab: (tab: Tab) => void;
  close: () => void;
}

export function Detail({ store, row, tab, text, open, setTab, close }: Props): JSX.Element {
  const { rows } = store;
  const record = useLoaded(() => store.trajectory(row), [row]);
  const group = rows.groups[rows.group[row]];
  const members = useMemo(() => Array.from({ length: group.count }, (_, i) => group.first + i), [group]);
  const limits = useMemo(() => ends(rows.numbers.score), [rows.numbers.score]);
  const query = parseQuery(text);
  const words = [...query.exact, ...query.words];
  return (
    <section class="detail" aria-label="Trajectory">
      <header>
        <div class="line">
          <button type="button" class="back" onClick={close} aria-label="Back to the list">←</button>
          <h1>{rows.id(row)}</h1>
          <span class="muted">{fileLabel(rows.files[rows.file[row]])} · {rows.codeName("task", row)}</span>
        </div>
        <Facts {...{ store, row }} />
        {group.count > 1 && (
          <div class="line group-line">
            <span class="muted">group of {group.count}</span>
            <Dots reward={rows.numbers.score} {...{ limits, members, open }} chosen={row} title={(one) => `${rows.id(one)}: ${short(rows.numbers.score[one])}`} />
          </div>
        )}
        <nav class="tabs" aria-label="Views of the trajectory">
          {TABS.filter((name) => name !== "group" || group.count > 1).map((name) => (
            <button key={name} type="button" aria-pressed={name === tab} class={name === tab ? "chosen" : ""} onClick={() => setTab(name)}>
              {name === "group" ? "side by side" : name}
            </button>
          ))}
        </nav>
      </header>
      <div class="body" key={`${row} ${tab}`}>
        {record === undefined ? <p class="hint">Reading …</p>
          : record instanceof Error ? <p class="hint bad">{record.message}</p>
          : record === null ? <p class="hint">This trajectory was left out, because the page reached its limit of {store.overview.contents.max_mb} MB. <code>rl view RUN --serve</code> shows all.</p>
          : <Body {...{ store, row, tab, record, members, words, open }} />}
      </div>
    </section>
  );
}

function Facts({ store: { rows }, row }: { store: Store; row: number }): JSX.Element {
  const { numbers } = rows;
  const stop = rows.codeName("stop", row);
  const errors = rows.errorsOf(row);
  const wait = Math.max(0, numbers.wall_s[row] - numbers.generate_s[row] - numbers.tool_s[row]);
  return (
    <div class="facts">
      <span><b>{short(numbers.score[row])}</b> score</span>
      {[...rows.rewards].map(([name, column]) => !Number.isNaN(column[row]) && <span key={name}><b>{short(column[row])}</b> {name}</span>)}
      <span class={stop === "finished" ? "" : "warn"}><b>{stop}</b></span>
      {!Number.isNaN(numbers.advantage[row]) && <span><b>{short(numbers.advantage[row])}</b> advantage</span>}
      {rows.codeName("exclusion", row) && <span class="warn">not trained on: <b>{rows.codeName("exclusion", row)}</b></span>}
      {errors.length > 0 && <span class="bad"><b>{errors.join(", ")}</b></span>}
      <span><b>{numbers.turns[row]}</b> {numbers.turns[row] === 1 ? "turn" : "turns"}</span>
      <span><b>{numbers.calls[row]}</b> {numbers.calls[row] === 1 ? "call" : "calls"}</span>
      <span><b>{numbers.sampled[row].toLocaleString("en-US")}</b> tokens</span>
      <span title={`generation ${seconds(numbers.generate_s[row])}, tools ${seconds(numbers.tool_s[row])}, waiting ${seconds(wait)}`}>
        <b>{seconds(numbers.wall_s[row])}</b>
        <span class="times" aria-label={`generation ${seconds(numbers.generate_s[row])}, tools ${seconds(numbers.tool_s[row])}, waiting ${seconds(wait)}`}>
          <i style={{ flexGrow: numbers.generate_s[row], background: "var(--model)" }} />
          <i style={{ flexGrow: numbers.tool_s[row], background: "var(--tool)" }} />
          <i style={{ flexGrow: wait, background: "var(--none)" }} />
        </span>
      </span>
    </div>
  );
}

function Body({ store, row, tab, record, members, words, open }: {
  store: Store; row: number; tab: Tab; record: Trajectory; members: number[]; words: string[]; open: (row: number) => void;
}): JSX.Element {
  if (tab === "group") return <Beside {...{ store, row, members, words, open }} />;
  if (tab === "timeline") return <GroupLanes {...{ store, members, open }} chosen={record.id} />;
  if (tab === "tokens") return <TokensTab store={store} row={row} id={record.id} />;
  if (tab === "record") return <pre class="json"><Text text={JSON.stringify(record, null, 2)} words={words} /></pre>;
  return <Conversation record={record} words={words} />;
}

/** The trajectory next to others of its group; which ones, the reader chooses. */
function Beside({ store, row, members, words }: { store: Store; row: number; members: number[]; words: string[] }): JSX.Element {
  const { rows } = store;
  const [others, setOthers] = useState(() => unlike(rows.numbers.score, row, members));
  const shown = [row, ...others.filter((other) => other !== row)];
  const records = useLoaded(() => Promise.all(shown.map((one) => store.trajectory(one))), shown);
  const toggle = (one: number): void =>
    setOthers(others.includes(one) ? others.filter((other) => other !== one) : [...others, one].slice(-BESIDE));
  return (
    <>
      <div class="chips" role="group" aria-label="Compare with">
        {members.map((one) => (
          <button key={one} type="button" disabled={one === row} aria-pressed={shown.includes(one)} class={shown.includes(one) ? "chosen" : ""} onClick={() => toggle(one)}>
            /{rows.numbers.sample[one]} <b>{short(rows.numbers.score[one])}</b>
          </button>
        ))}
      </div>
      <div class="beside">
        {Array.isArray(records) && records.map((record, i) => (
          <div key={shown[i]} class="column">
            <h2>/{rows.numbers.sample[shown[i]]} <span class="muted">score {short(rows.numbers.score[shown[i]])} · {rows.codeName("stop", shown[i])} · {seconds(rows.numbers.wall_s[shown[i]])}</span></h2>
            {record ? <Conversation record={i === 0 ? record : { ...record, messages: [] }} words={words} /> : <p class="hint">left out of this page</p>}
          </div>
        ))}
      </div>
    </>
  );
}

/** The first member with another score, or simply the next one. */
function unlike(score: Float64Array, row: number, members: number[]): number[] {
  const others = members.filter((one) => one !== row);
  const other = others.find((one) => score[one] !== score[row]) ?? others[0];
  return other === undefined ? [] : [other];
}

function GroupLanes({ store, members, chosen, open }: {
  store: Store; members: number[]; chosen: string; open: (row: number) => void;
}): JSX.Element {
  const records = useLoaded(() => Promise.all(members.map((one) => store.trajectory(one))), members);
  if (!Array.isArray(records)) return <p class="hint">Reading …</p>;
  const pick = (id: string): void => open(members.find((one) => store.rows.id(one) === id) ?? members[0]);
  return <GroupTimeline records={records.filter((record) => record !== null)} chosen={chosen} open={pick} />;
}

function TokensTab({ store, row, id }: { store: Store; row: number; id: string }): JSX.Element {
  const { step, kind } = store.rows.files[store.rows.file[row]];
  const tokens = useLoaded(async () => (kind === "step" ? store.tokens(step, id) : null), [row]);
  if (tokens === undefined) return <p class="hint">Reading …</p>;
  if (tokens instanceof Error) return <p class="hint bad">{tokens.message}</p>;
  if (tokens === null) {
    return <p class="hint">No tokens of this trajectory. A training run records them in every n-th step with <code>megatron_training.record_tokens_every=n</code>.</p>;
  }
  return <TokenView sequences={tokens} />;
}
