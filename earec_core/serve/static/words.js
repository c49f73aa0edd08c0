// The words that a text shares with its anchor: the longest common subsequence, which ROUGE-L counts.
import { make } from "./dom.js";

const PIECES = /[\p{L}\p{N}]+|[^\p{L}\p{N}]+/gu;
const WORD = /^[\p{L}\p{N}]/u;

function common(ours, theirs) {
  const table = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i--) {
    for (let j = theirs.length - 1; j >= 0; j--) {
      table[i][j] = ours[i] === theirs[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  const places = new Set();
  for (let i = 0, j = 0; i < ours.length && j < theirs.length; ) {
    if (ours[i] === theirs[j]) {
      places.add(i++);
      j++;
    } else if (table[i + 1][j] >= table[i][j + 1]) i++;
    else j++;
  }
  return places;
}

// The text as nodes, the shared words in <mark>.
export function marked(text, anchor) {
  const pieces = text.match(PIECES) ?? [];
  const folded = (some) => some.filter((piece) => WORD.test(piece)).map((piece) => piece.toLowerCase());
  const shared = common(folded(pieces), folded(anchor?.match(PIECES) ?? []));
  let word = 0;
  return pieces.map((piece) => (WORD.test(piece) && shared.has(word++) ? make("mark", {}, piece) : piece));
}
