// The recorded tokens of a trajectory, colored by who wrote them or by a value.

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { short } from "./lines";
import { visible } from "./text";
import type { Tokens } from "./types";

const SHOWN_FIRST = 6000;

interface Mode {
  label: string;
  /** What a color means, for the legend. */
  meaning: string;
  /** The value of a token; undefined where it has none. Absent for the author. */
  value?: (tokens: Tokens, i: number) => number | null | undefined;
  /** Values of both signs, with 0 in the middle. */
  isSigned?: boolean;
}

const get = (name: string) => (tokens: Tokens, i: number) => (tokens.loss_mask[i] ? tokens.values[name]?.[i] : undefined);
const difference = (left: string, right: string) => (tokens: Tokens, i: number): number | undefined => {
  const [a, b] = [get(left)(tokens, i), get(right)(tokens, i)];
  return a === null || a === undefined || b === null || b === undefined ? undefined : a - b;
};

const MODES: Record<string, Mode> = {
  author: { label: "author", meaning: "who wrote the token" },
  logprob: { label: "log-prob", meaning: "log-probability when the engine sampled the token", value: get("rollout_logprobs") },
  difference: {
    label: "engine − actor", meaning: "log-prob of the engine minus the actor's; far from 0 means that they disagree",
    value: difference("rollout_logprobs", "old_logprobs"), isSigned: true,
  },
  advantage: { label: "advantage", meaning: "advantage: above 0 the token becomes more likely, below 0 less", value: get("advantages"), isSigned: true },
  moved: {
    label: "moved by the update", meaning: "log-prob after the update minus before", value: difference("new_logprobs", "old_logprobs"), isSigned: true,
  },
  reference: { label: "actor − reference", meaning: "log-prob of the actor minus the reference model's", value: difference("old_logprobs", "ref_logprobs"), isSigned: true },
  entropy: { label: "entropy", meaning: "entropy of the distribution that the token was sampled from", value: get("entropy") },
  ratio: { label: "ratio", meaning: "probability in the update over the one that the loss compares it with", value: get("ratios") },
  clipped: { label: "clipped", meaning: "1: the loss clipped the ratio", value: get("is_clipped") },
  weight: { label: "loss weight", meaning: "weight of the token in the loss; 0 means that it does not count", value: get("loss_weights") },
  correction: { label: "correction weight", meaning: "weight that corrects for the engine's distribution", value: get("correction_weights") },
};

export function TokenView({ sequences }: { sequences: Tokens[] }): JSX.Element {
  const [name, setName] = useState("author");
  const [pointed, setPointed] = useState<[number, number] | null>(null);
  const has = (mode: Mode): boolean =>
    !mode.value || sequences.some((tokens) => tokens.pieces.some((_, i) => mode.value!(tokens, i) != null));
  const modes = Object.entries(MODES).filter(([, mode]) => has(mode));
  const mode = MODES[name];
  const scale = scaleOf(sequences, mode);
  return (
    <div class="tokens">
      <div class="modes" role="group" aria-label="Color of the tokens">
        {modes.map(([key, { label }]) => (
          <button key={key} type="button" aria-pressed={key === name} class={key === name ? "chosen" : ""} onClick={() => setName(key)}>{label}</button>
        ))}
      </div>
      <Legend mode={mode} scale={scale} />
      {sequences.map((tokens, s) => (
        <Sequence key={s} tokens={tokens} mode={mode} scale={scale} title={sequences.length > 1 ? `sequence ${tokens.sequence}` : ""} point={(i) => setPointed([s, i])} />
      ))}
      <Readout tokens={pointed ? sequences[pointed[0]] : undefined} index={pointed?.[1] ?? -1} />
    </div>
  );
}

function Sequence({ tokens, mode, scale, title, point }: {
  tokens: Tokens; mode: Mode; scale: number; title: string; point: (index: number) => void;
}): JSX.Element {
  const [num, setNum] = useState(SHOWN_FIRST);
  return (
    <>
      {title && <h3>{title}</h3>}
      <div
        class="token-text"
        onMouseOver={(event) => {
          const index = (event.target as HTMLElement).dataset.i;
          if (index) point(Number(index));
        }}
      >
        {tokens.pieces.slice(0, num).map((piece, i) => {
          const value = mode.value?.(tokens, i);
          const style = mode.value ? (value == null ? undefined : { background: shade(value, scale, mode) }) : undefined;
          return <span key={i} data-i={i} class={mode.value ? (value == null ? "none" : "") : author(tokens, i)} style={style}>{shown(piece)}</span>;
        })}
        {tokens.pieces.length > num && (
          <button class="link" onClick={() => setNum(num + 4 * SHOWN_FIRST)}>… {(tokens.pieces.length - num).toLocaleString("en-US")} more tokens</button>
        )}
      </div>
    </>
  );
}

function author(tokens: Tokens, i: number): string {
  return i < tokens.prompt_length ? "by-prompt" : tokens.loss_mask[i] ? "by-model" : "by-tool";
}

/** A token's text; line ends are marked, because a token of only line ends has no width. */
function shown(piece: string): string {
  return visible(piece).replace(/\n/g, "⏎\n");
}

/** The largest size of a value, which gets the full color; outliers do not count. */
function scaleOf(sequences: Tokens[], mode: Mode): number {
  const sizes: number[] = [];
  for (const tokens of sequences) {
    tokens.pieces.forEach((_, i) => {
      const value = mode.value?.(tokens, i);
      if (value != null) sizes.push(Math.abs(value));
    });
  }
  sizes.sort((a, b) => a - b);
  return sizes[Math.min(sizes.length - 1, Math.floor(0.99 * sizes.length))] || 1;
}

function shade(value: number, scale: number, mode: Mode): string {
  const share = Math.round(100 * Math.min(1, Math.abs(value) / scale));
  const hue = mode.isSigned ? (value < 0 ? "--below" : "--above") : "--amount";
  return `color-mix(in srgb, var(${hue}) ${share}%, transparent)`;
}

function Legend({ mode, scale }: { mode: Mode; scale: number }): JSX.Element {
  if (!mode.value) {
    return (
      <div class="legend">
        <span><i class="by-prompt" />prompt</span><span><i class="by-tool" />tool or environment</span><span><i class="by-model" />model (trained on)</span>
      </div>
    );
  }
  const steps = mode.isSigned ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  const sign = mode.label === "log-prob" ? -1 : 1;
  return (
    <div class="legend">
      {steps.map((step) => <span key={step}><i style={{ background: shade(step * scale, scale, mode) }} />{short(sign * step * scale)}</span>)}
      <span class="muted">{mode.meaning}. Gray: tokens without a value.</span>
    </div>
  );
}

function Readout({ tokens, index }: { tokens?: Tokens; index: number }): JSX.Element {
  if (!tokens) return <p class="readout">Point at a token for its values.</p>;
  const values = Object.entries(tokens.values).filter(([, column]) => column[index] != null && tokens.loss_mask[index]);
  return (
    <p class="readout">
      <b>token {index}</b> “{shown(tokens.pieces[index])}” · id {tokens.token_ids[index]} · {author(tokens, index).slice(3)}
      {values.map(([name, column]) => <span key={name}> · {name} {short(column[index])}</span>)}
    </p>
  );
}
