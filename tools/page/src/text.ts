// Texts of models and tools, made safe to look at: characters that hide or reorder text become visible.

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f]/g;
const SHAPELESS = /[\u0080-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Show control characters as their pictures (␛, ␀), and characters without a shape by their number. */
export function visible(text: string): string {
  return text
    .toWellFormed()
    .replace(/\r\n/g, "\n")
    .replace(CONTROL, (c) => String.fromCharCode(c === "\u007f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
    .replace(SHAPELESS, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A piece of a text: plain, a template's special token, or a match of the filter. */
export interface Piece {
  text: string;
  kind: "plain" | "special" | "match";
}

/** Cut a text at special tokens such as <|im_end|> and at matches of the filter's words. */
export function pieces(text: string, wanted: string[]): Piece[] {
  const escaped = wanted.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const matches = escaped.length ? `|(${escaped.join("|")})` : "";
  const pattern = new RegExp(`(<\\|[^|<>\\n]{1,40}\\|>|</?[a-z_]{1,24}>)${matches}`, "gi");
  const found: Piece[] = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > at) found.push({ text: text.slice(at, match.index), kind: "plain" });
    found.push({ text: match[0], kind: match[1] ? "special" : "match" });
    at = match.index + match[0].length;
  }
  if (at < text.length) found.push({ text: text.slice(at), kind: "plain" });
  return found;
}

/** Turn offsets in code points (Python's) into offsets in UTF-16 units (JavaScript's). */
export function unitOffsets(text: string, points: number[]): number[] {
  if (!/[\ud800-\udbff]/.test(text)) return points;
  const units = new Map<number, number>();
  const wanted = new Set(points);
  let unit = 0;
  let point = 0;
  for (const character of text) {
    if (wanted.has(point)) units.set(point, unit);
    unit += character.length;
    point += 1;
  }
  return points.map((p) => units.get(p) ?? unit);
}

/** All texts of a message or a value, for display. */
export function asText(value: unknown): string {
  return typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value, null, 2);
}
