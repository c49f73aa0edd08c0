// What the model says of an item from a source, the words that stand in its anchor marked.
import { make } from "./dom.js";
import { number } from "./lines.js";
import { marked } from "./words.js";

export function said({ source, text, rouge_l: score }, anchor, tag = "h4") {
  const heading = make(tag, {}, `from ${source}`);
  if (score !== null) heading.append(" ", make("span", { class: "score" }, `ROUGE-L ${number(score)}`));
  return [heading, make("p", { class: "text" }, ...(text ? marked(text, anchor) : ["(nothing)"]))];
}
