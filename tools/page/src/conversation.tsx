// A trajectory as a conversation.

import { Fragment, type JSX } from "preact";
import { seconds, Text } from "./parts";
import { asText, unitOffsets } from "./text";
import type { Call, Message, Result, Start, Trajectory, Turn } from "./types";

export function Conversation({ record, words }: { record: Trajectory; words: string[] }): JSX.Element {
  return (
    <div class="conversation">
      {record.messages.map((message, i) => <Said key={i} message={message} words={words} />)}
      {(record.starts?.length ?? 0) > 1 && <Sequences record={record} />}
      {record.turns.map((turn, i) => (
        <Fragment key={i}>
          {(record.starts?.length ?? 0) > 1 && turn.sequence !== record.turns[i - 1]?.sequence && (
            <h2 class="sequence" id={anchor(record, turn.sequence!)}>
              sequence {turn.sequence} <span class="muted">{began(record.starts![turn.sequence!])}</span>
            </h2>
          )}
          {turn.asked?.map((message, j) => <Said key={j} message={message} words={words} />)}
          <TurnView turn={turn} number={i + 1} reward={record.turn_rewards?.[i]} words={words} />
        </Fragment>
      ))}
      <Outcome record={record} words={words} />
    </div>
  );
}

const anchor = (record: Trajectory, sequence: number): string => `${record.id}-sequence-${sequence}`;

/** Why a sequence began, and behind which tokens. */
function began(start: Start): string {
  const behind = start.branches_from === null ? "" : `behind ${start.num_copied} tokens of sequence ${start.branches_from}, `;
  return behind + start.why.replaceAll("_", " ");
}

/** The tree of the sequences: which began with the tokens of which. */
function Sequences({ record }: { record: Trajectory }): JSX.Element {
  const starts = record.starts!;
  const below = (parent: number | null): JSX.Element | null => {
    const numbers = starts.map((_, i) => i).filter((i) => starts[i].branches_from === parent);
    return numbers.length === 0 ? null : (
      <ul>{numbers.map((i) => {
        const turns = record.turns.filter((turn) => turn.sequence === i);
        const tokens = turns.reduce((sum, turn) => sum + turn.num_tokens, 0);
        return (
          <li key={i}>
            <button type="button" onClick={() => document.getElementById(anchor(record, i))?.scrollIntoView()}>sequence {i}</button>
            <span class="muted"> {turns.length} {turns.length === 1 ? "turn" : "turns"} · {tokens} tokens · {began(starts[i])}</span>
            {below(i)}
          </li>
        );
      })}</ul>
    );
  };
  return <nav class="sequences" aria-label="Sequences">{below(null)}</nav>;
}

function Said({ message, words }: { message: Message; words: string[] }): JSX.Element {
  return (
    <article class={`said ${message.role === "assistant" ? "model" : "prompt"}`}>
      <h3>{message.role}</h3>
      <pre dir="auto"><Text text={asText(message.content) || "(empty)"} words={words} /></pre>
      {message.tool_calls ? <pre class="call"><Text text={asText(message.tool_calls)} words={words} /></pre> : null}
    </article>
  );
}

function TurnView({ turn, number, reward, words }: { turn: Turn; number: number; reward?: number; words: string[] }): JSX.Element {
  const parts = segments(turn);
  const shown = new Set(parts.map((part) => part.call));
  return (
    <>
      <article class="said model">
        <h3>
          model <span class="muted">turn {number} · {turn.num_tokens} tokens · {seconds(turn.generate_s)}
            {turn.generate_s > 0 && ` · ${Math.round(turn.num_tokens / turn.generate_s)} tokens/s`}
            {reward ? ` · reward ${reward}` : ""}</span>
          {turn.is_cut && <span class="badge bad">cut off</span>}
        </h3>
        {parts.map((part, i) =>
          part.call ? <CallView key={i} call={part.call} words={words} />
          : part.isThought ? (
            <details key={i} class="thought" open={part.text.length < 1500}>
              <summary>thought, {part.text.length.toLocaleString("en-US")} characters</summary>
              <pre dir="auto"><Text text={part.text} words={words} /></pre>
            </details>
          ) : <pre key={i} dir="auto"><Text text={part.text} words={words} /></pre>,
        )}
        {parts.length === 0 && <pre class="muted">(empty)</pre>}
        {turn.calls.filter((call) => !shown.has(call)).map((call, i) => <CallView key={`c${i}`} call={call} words={words} />)}
      </article>
      {turn.results.map((result, i) => <ResultView key={i} result={result} words={words} />)}
      {turn.messages?.map((message, i) => <Said key={`m${i}`} message={message} words={words} />)}
    </>
  );
}

interface Segment {
  text: string;
  isThought: boolean;
  call?: Call;
}

/** Cut a turn's text at its thoughts and at its calls, as far as the calls' raw text is found in it. */
export function segments(turn: Turn): Segment[] {
  const marks: { start: number; end: number; call?: Call }[] = [];
  const offsets = unitOffsets(turn.text, (turn.thoughts ?? []).flat());
  for (let i = 0; i < offsets.length; i += 2) marks.push({ start: offsets[i], end: offsets[i + 1] });
  let from = 0;
  for (const call of turn.calls) {
    const start = call.raw ? turn.text.indexOf(call.raw, from) : -1;
    if (start < 0) continue;
    const end = start + call.raw.length;
    if (marks.some((mark) => start < mark.end && end > mark.start)) continue; // a call in a thought
    marks.push({ start, end, call });
    from = end;
  }
  marks.sort((a, b) => a.start - b.start);
  const found: Segment[] = [];
  let at = 0;
  const plain = (end: number): void => {
    const text = turn.text.slice(at, end).replace(/^\n+|\n+$/g, "");
    if (text.trim()) found.push({ text, isThought: false });
  };
  for (const { start, end, call } of marks) {
    plain(start);
    found.push({ text: turn.text.slice(start, end), isThought: call === undefined, call });
    at = end;
  }
  plain(turn.text.length);
  return found;
}

function CallView({ call, words }: { call: Call; words: string[] }): JSX.Element {
  const names = Object.keys(call.arguments ?? {});
  const isOne = names.length === 1;
  return (
    <div class={`call${call.error !== null ? " failed" : ""}`}>
      <h4>{call.error !== null ? `malformed call${call.name ? ` of ${call.name}` : ""}: ${call.error}` : <>calls <b>{call.name}</b>{isOne ? ` · ${names[0]}` : ""}</>}</h4>
      {call.error !== null
        ? <pre dir="auto"><Text text={call.raw} words={words} /></pre>
        : names.map((name) => (
          <pre key={name} dir="auto">{!isOne && <span class="muted">{name}: </span>}<Text text={asText(call.arguments[name])} words={words} /></pre>
        ))}
      {call.raw && call.error === null && (
        <details class="raw"><summary>as written</summary><pre dir="auto"><Text text={call.raw} words={words} /></pre></details>
      )}
    </div>
  );
}

function ResultView({ result, words }: { result: Result; words: string[] }): JSX.Element {
  const attempts = result.num_failed_attempts ?? 0;
  return (
    <article class={`said tool${result.status === "ok" ? "" : " failed"}`}>
      <h3>
        {result.name || "tool"} <span class={result.status === "ok" ? "badge good" : "badge bad"}>{result.status}</span>
        <span class="muted"> ran {seconds(result.run_s)} · waited {seconds(result.queue_s)}
          {attempts > 0 && ` · ${attempts} failed attempts`}{result.reward !== null && ` · reward ${result.reward}`}</span>
        {result.is_truncated && <span class="badge">truncated</span>}
      </h3>
      <pre dir="auto"><Text text={result.text || "(empty)"} words={words} /></pre>
    </article>
  );
}

function Outcome({ record, words }: { record: Trajectory; words: string[] }): JSX.Element {
  return (
    <article class="said outcome">
      <h3>outcome</h3>
      <dl>
        <dt>expected</dt><dd><Text text={asText(record.ground_truth) || "(nothing)"} words={words} /></dd>
        <dt>stopped</dt><dd>{record.stop_reason}</dd>
        {Object.entries(record.rewards).map(([name, value]) => [<dt key={name}>{name}</dt>, <dd>{value ?? "–"}</dd>])}
        {Object.entries(record.reward_texts ?? {}).map(([name, text]) => [<dt key={name}>{name}</dt>, <dd><pre dir="auto"><Text text={text} words={words} /></pre></dd>])}
        {record.reward != null && record.reward !== record.score && [<dt>reward, shaped</dt>, <dd>{record.reward}</dd>]}
        {record.advantage != null && [<dt>advantage</dt>, <dd>{record.advantage}</dd>]}
        {record.exclusion && [<dt class="warn">not trained on</dt>, <dd>{record.exclusion}</dd>]}
        {record.kl_penalty ? [<dt>KL penalty</dt>, <dd>{record.kl_penalty}</dd>] : null}
        {record.failure && [<dt class="bad">failed</dt>, <dd><Text text={record.failure} words={words} /></dd>]}
        {record.reward_error && [<dt class="bad">reward failed</dt>, <dd><Text text={record.reward_error} words={words} /></dd>]}
      </dl>
    </article>
  );
}
