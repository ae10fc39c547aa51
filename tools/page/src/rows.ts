// The index of all trajectories in columns, joined from the chunks `rows/0`, `rows/1`, ...

import { readJson } from "./chunks";
import type { Overview, RowChunk } from "./types";

export interface File {
  name: string;
  /** `step` or `eval`. */
  kind: string;
  step: number;
  first: number;
  count: number;
}

export interface Group {
  prompt: string;
  preview: string;
  file: number;
  first: number;
  count: number;
}

const NUMBERS = ["score", "advantage", "sample", "turns", "calls", "sampled", "response", "wall_s", "generate_s", "tool_s"] as const;
const CODES = ["task", "set", "stop", "exclusion"] as const;
export type NumberName = (typeof NUMBERS)[number];
export type CodeName = (typeof CODES)[number];

export class Rows {
  num = 0;
  files: File[] = [];
  groups: Group[] = [];
  /** Texts of the codes and of the bits of `errors`. */
  names: string[] = [];
  errorNames: string[] = [];
  numbers = {} as Record<NumberName, Float64Array>;
  codes = {} as Record<CodeName, Uint16Array>;
  rewards = new Map<string, Float64Array>();
  endings: string[] = [];
  /** Bits by `errorNames`. */
  errors = new Uint32Array(0);
  /** As rl counts it: the first reward of the trajectory is 1, and no reward failed. */
  isCorrect = new Uint8Array(0);
  file = new Uint32Array(0);
  group = new Uint32Array(0);
  private numBlocks = 0;
  private codeOf = new Map<string, number>();
  private fileOf = new Map<string, number>();

  constructor() {
    for (const name of NUMBERS) this.numbers[name] = new Float64Array(0);
    for (const name of CODES) this.codes[name] = new Uint16Array(0);
  }

  /** Read the blocks that the run has got since the last call; `changed` is called after each. */
  async load(overview: Overview, changed: () => void): Promise<void> {
    while (this.numBlocks < overview.contents.blocks.length) {
      this.append(await readJson<RowChunk>(`rows/${this.numBlocks}`, true));
      this.numBlocks += 1;
      changed();
    }
  }

  id(row: number): string {
    return `${this.groups[this.group[row]].prompt}/${this.numbers.sample[row]}`;
  }

  /** The row of a trajectory in a file, or -1. */
  find(fileName: string, id: string): number {
    const file = this.files[this.fileOf.get(fileName) ?? -1];
    if (!file) return -1;
    for (let row = file.first; row < file.first + file.count; row++) if (this.id(row) === id) return row;
    return -1;
  }

  fileName(row: number): string {
    return this.files[this.file[row]].name;
  }

  codeName(column: CodeName, row: number): string {
    return this.names[this.codes[column][row]];
  }

  /** Statuses other than `ok` of the trajectory's calls. */
  errorsOf(row: number): string[] {
    return this.errorNames.filter((_, bit) => this.errors[row] & (1 << bit));
  }

  private append(chunk: RowChunk): void {
    const base = this.num;
    this.num += chunk.num_rows;
    const codes = chunk.names.map((name) => this.code(name));
    for (const name of NUMBERS) this.numbers[name] = joined(this.numbers[name], chunk.columns[name], base);
    for (const name of CODES) {
      const column = new Uint16Array(this.num);
      column.set(this.codes[name]);
      chunk.columns[name].forEach((value, i) => (column[base + i] = codes[value ?? 0]));
      this.codes[name] = column;
    }
    for (const name of Object.keys(chunk.rewards)) if (!this.rewards.has(name)) this.rewards.set(name, filled(base));
    for (const [name, column] of this.rewards) this.rewards.set(name, joined(column, chunk.rewards[name], base, this.num));
    for (const ending of chunk.endings) this.endings.push(ending);
    this.isCorrect = grown(this.isCorrect, this.num);
    chunk.columns.is_correct.forEach((value, i) => (this.isCorrect[base + i] = value ?? 0));
    this.errors = grown(this.errors, this.num);
    chunk.tool_errors.forEach((found, i) => {
      for (const name of found) this.errors[base + i] |= 1 << this.errorBit(chunk.names[name]);
    });
    this.appendPlaces(chunk, base);
  }

  private appendPlaces(chunk: RowChunk, base: number): void {
    this.file = grown(this.file, this.num);
    this.group = grown(this.group, this.num);
    for (const { name, first, count } of chunk.files) {
      const [kind, step] = name.split("_");
      this.fileOf.set(name, this.files.length);
      this.file.fill(this.files.length, base + first, base + first + count);
      this.files.push({ name, kind, step: Number(step), first: base + first, count });
    }
    for (const { prompt, preview, first, count } of chunk.groups) {
      this.group.fill(this.groups.length, base + first, base + first + count);
      this.groups.push({ prompt, preview, file: this.file[base + first], first: base + first, count });
    }
  }

  private code(name: string): number {
    let code = this.codeOf.get(name);
    if (code === undefined) {
      code = this.names.push(name) - 1;
      this.codeOf.set(name, code);
    }
    return code;
  }

  private errorBit(name: string): number {
    const bit = this.errorNames.indexOf(name);
    return bit >= 0 ? bit : this.errorNames.push(name) - 1;
  }
}

/** `step 12`, or `evaluation after step 12`. */
export function fileLabel(file: File): string {
  return file.kind === "step" ? `step ${file.step}` : `evaluation at ${file.step}`;
}

function joined(
  column: Float64Array, more: (number | null)[] | undefined, base: number, length = base + (more?.length ?? 0),
): Float64Array {
  const result = filled(length);
  result.set(column);
  more?.forEach((value, i) => (result[base + i] = value ?? NaN));
  return result;
}

function filled(length: number): Float64Array {
  return new Float64Array(length).fill(NaN);
}

function grown<T extends Uint8Array<ArrayBuffer> | Uint32Array<ArrayBuffer>>(column: T, length: number): T {
  const result = new (column.constructor as new (length: number) => T)(length);
  result.set(column);
  return result;
}
