// Small views that several others use.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type ChartOptions, drawLines } from "./lines";
import { pieces, visible } from "./text";

const FOLDED_FROM = 6000;

/** A text as it was written, with special tokens dimmed, matches marked, and a long end folded away. */
export function Text({ text, words = [] }: { text: string; words?: string[] }): JSX.Element {
  const [isWhole, setWhole] = useState(text.length <= FOLDED_FROM);
  const shown = visible(isWhole ? text : text.slice(0, FOLDED_FROM));
  return (
    <>
      {pieces(shown, words).map(({ text, kind }) =>
        kind === "plain" ? text : kind === "match" ? <mark>{text}</mark> : <span class="special">{text}</span>,
      )}
      {!isWhole && (
        <button class="link" onClick={() => setWhole(true)}>
          … show all {text.length.toLocaleString("en-US")} characters
        </button>
      )}
    </>
  );
}

/** A list of rows of one height, of which only those in sight exist. */
export function VirtualList({ num, height, item, chosen, label }: {
  num: number;
  height: number;
  item: (index: number) => JSX.Element;
  /** Index that is kept in sight. */
  chosen?: number;
  label: string;
}): JSX.Element {
  const ref = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [size, setSize] = useState(600);
  useLayoutEffect(() => {
    const element = ref.current!;
    const resized = new ResizeObserver(() => setSize(element.clientHeight));
    resized.observe(element);
    return () => resized.disconnect();
  }, []);
  useLayoutEffect(() => {
    const element = ref.current!;
    if (chosen === undefined || chosen < 0) return;
    const at = chosen * height;
    if (at < element.scrollTop) element.scrollTop = at - height;
    else if (at + height > element.scrollTop + element.clientHeight) element.scrollTop = at - element.clientHeight + 2 * height;
  }, [chosen, height]);
  const first = Math.max(0, Math.floor(top / height) - 8);
  const last = Math.min(num, Math.ceil((top + size) / height) + 8);
  const items: JSX.Element[] = [];
  for (let i = first; i < last; i++) {
    items.push(<div key={i} class="virtual-row" role="listitem" style={{ top: `${i * height}px`, height: `${height}px` }}>{item(i)}</div>);
  }
  return (
    <div class="virtual" ref={ref} tabIndex={0} role="list" aria-label={label} onScroll={(e) => setTop(e.currentTarget.scrollTop)}>
      <div class="virtual-all" style={{ height: `${num * height}px` }}>{items}</div>
    </div>
  );
}

/** A line chart with a title. */
export function Chart({ title, note, ...options }: ChartOptions & { title: string; note?: ComponentChildren }): JSX.Element {
  const ref = useRef<HTMLDivElement>(null);
  const key = JSON.stringify([options.x, options.lines]);
  useEffect(() => drawLines(ref.current!, options).destroy, [key]);
  return (
    <figure class="chart">
      <figcaption><span class="name" title={title}>{title}</span><span class="note">{note}</span></figcaption>
      <div ref={ref} />
    </figure>
  );
}

/** The result of a promise; undefined until it is there. It starts again when `key` changes. */
export function useLoaded<T>(load: () => Promise<T>, key: unknown[]): T | Error | undefined {
  const [state, setState] = useState<{ key: string; value: T | Error }>();
  const name = JSON.stringify(key);
  useEffect(() => {
    let isCurrent = true;
    load().catch((error) => (error instanceof Error ? error : new Error(String(error)))).then((value) => {
      if (isCurrent) setState({ key: name, value });
    });
    return () => void (isCurrent = false);
  }, [name]);
  return state?.key === name ? state.value : undefined;
}

/** Seconds, with as many digits as one can tell apart. */
export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value >= 3600) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 120) return `${(value / 60).toFixed(1)} min`;
  if (value < 0.01 && value > 0) return `${Number((1000 * value).toPrecision(2))} ms`;
  return `${value.toFixed(value >= 10 ? 1 : 2)} s`;
}

/** A color from red (the lowest reward of the run) over yellow to green (the highest). */
export function rewardColor(value: number, low: number, high: number): string {
  if (Number.isNaN(value)) return "var(--none)";
  return shareColor(high > low ? (value - low) / (high - low) : value > 0 ? 1 : 0);
}

/** The same colors for a share from 0 to 1. */
export function shareColor(share: number): string {
  const mix = (high: string, low: string, part: number): string => `color-mix(in oklab, var(--reward-${high}) ${Math.round(part * 100)}%, var(--reward-${low}))`;
  return share > 0.5 ? mix("high", "middle", 2 * share - 1) : mix("middle", "low", 2 * share);
}
