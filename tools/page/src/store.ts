// The run that the page shows: its overview, its rows, and its trajectories as they are opened.

import { isServed, parseJson, readChunk, readJson } from "./chunks";
import { Rows } from "./rows";
import type { Overview, Span, Tokens, Trajectory } from "./types";
import { parseQuery, Words } from "./words";

const KEPT_CHUNKS = 12;
const POLL_MS = 2000;

export class Store {
  rows = new Rows();
  words = new Words();
  private chunks = new Map<string, Promise<string[]>>();

  constructor(public overview: Overview) {}

  static async open(): Promise<Store> {
    return new Store(await readJson<Overview>("run"));
  }

  /** Read the index; then, when served, look for new steps for ever. `changed` is called after each change. */
  async follow(changed: () => void): Promise<void> {
    await this.rows.load(this.overview, changed);
    let known = "";
    while (isServed) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      try {
        const state = JSON.stringify(await readJson("state"));
        if (state === known) continue;
        this.overview = await readJson<Overview>("run");
        known = state;
        changed();
        await this.rows.load(this.overview, changed);
      } catch (error) {
        console.warn("the server does not answer", error); // it may come back
      }
    }
  }

  /** Whether rows of the index are still to be read. */
  get isReading(): boolean {
    return this.rows.num < this.overview.contents.blocks.reduce((sum, block) => sum + block.num_rows, 0);
  }

  /** The record of a row; null if the page does not have it. */
  async trajectory(row: number): Promise<Trajectory | null> {
    const [name, line] = this.chunkOf(row);
    if (this.overview.contents.left_out.includes(name)) return null;
    return parseJson<Trajectory>((await this.lines(name))[line]);
  }

  /** 1 for the rows that match a text. Rows of exact texts are added as they are found; `found` is called meanwhile. */
  async search(text: string, found: (hits: Uint8Array, share: number) => void, signal: AbortSignal): Promise<void> {
    const query = parseQuery(text);
    this.words.load(this.overview.contents.blocks);
    const candidates = await this.words.search(query.words, this.rows.num);
    if (signal.aborted) return;
    if (query.exact.length === 0) return found(candidates, 1);
    await this.searchExact(query.exact, candidates, found, signal);
  }

  /** The recorded tokens of a trajectory, one entry for each sequence; null if there are none. */
  async tokens(step: number, id: string): Promise<Tokens[] | null> {
    for (const [name, ids] of Object.entries(this.overview.contents.details)) {
      if (!name.startsWith(`tokens/${step}/`) || !ids.includes(id)) continue;
      return (await readJson<Tokens[]>(name)).filter((tokens) => tokens.trajectory_id === id);
    }
    return null;
  }

  /** Steps that have a timeline. */
  get timelineSteps(): number[] {
    const names = Object.keys(this.overview.contents.details).filter((name) => name.startsWith("timeline/"));
    return names.map((name) => Number(name.split("/")[1])).sort((a, b) => a - b);
  }

  async timeline(step: number): Promise<Span[]> {
    return readJson<Span[]>(`timeline/${step}`);
  }

  private async searchExact(
    wanted: string[], candidates: Uint8Array, found: (hits: Uint8Array, share: number) => void, signal: AbortSignal,
  ): Promise<void> {
    const hits = new Uint8Array(candidates.length);
    let shown = performance.now();
    for (let row = 0; row < candidates.length; row++) {
      if (!candidates[row]) continue;
      const record = await this.trajectory(row);
      if (signal.aborted) return;
      const text = record ? recordTexts(record).join("\n").toLowerCase() : "";
      hits[row] = Number(wanted.every((part) => text.includes(part)));
      if (performance.now() - shown > 200) {
        found(hits.slice(), row / candidates.length);
        await new Promise((resolve) => setTimeout(resolve)); // lets the browser draw and take input
        shown = performance.now();
      }
    }
    found(hits, 1);
  }

  /** Name of the chunk of records that has a row, and the row's line in it. */
  private chunkOf(row: number): [string, number] {
    let left = row;
    for (const [i, block] of this.overview.contents.blocks.entries()) {
      if (left >= block.num_rows) {
        left -= block.num_rows;
        continue;
      }
      for (const [j, count] of block.records.entries()) {
        if (left < count) return [`records/${i}/${j}`, left];
        left -= count;
      }
    }
    throw new Error(`row ${row}: not in the index`);
  }

  private lines(name: string): Promise<string[]> {
    let lines = this.chunks.get(name);
    if (!lines) lines = readChunk(name).then((bytes) => new TextDecoder().decode(bytes).split("\n"));
    this.chunks.delete(name); // the last used comes last
    this.chunks.set(name, lines);
    if (this.chunks.size > KEPT_CHUNKS) this.chunks.delete(this.chunks.keys().next().value as string);
    return lines;
  }
}

/** What the text filter looks at; the same texts as in words.py. */
function recordTexts(record: Trajectory): string[] {
  const content = (messages: { content: unknown }[]): string[] =>
    messages.map((m) => (typeof m.content === "string" ? m.content : JSON.stringify(m.content)));
  return [
    ...content(record.messages),
    ...record.turns.flatMap((turn) => [
      turn.text, ...turn.results.flatMap((result) => [result.name, result.text]), ...content(turn.messages ?? []),
    ]),
    record.ground_truth, record.failure ?? "", record.reward_error ?? "", ...Object.values(record.reward_texts ?? {}),
  ];
}
