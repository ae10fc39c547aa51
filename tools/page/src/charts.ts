// The part that every page has, as `window.turnwise`: charts, and chunks of data.

import "./theme.css";
import { readChunk, readJson, readLines } from "./chunks";
import { drawLines, short } from "./lines";

Object.assign(window, { turnwise: { drawLines, readChunk, readJson, readLines, short } });
