// Many searches over one stream, answered as they are found: node stream.js "a cake" "a car" …

import { connect, v1 } from "./connection.js";
import { unpack } from "./errors.js";

const texts = process.argv.slice(2);
const client = connect(v1.SearchService);
const stream = client.StreamSearch();

stream.on("data", ({ tag, result }) => {
  const { response, error } = result;
  if (error) console.log(`${texts[tag]}: ${unpack(error.details).ErrorInfo.reason}`);
  else console.log(`${texts[tag]}: ${response.hits.map((hit) => hit.image_id).join(" ")}`);
});
stream.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 2;
  client.close();
});
stream.on("end", () => client.close());

for (const [tag, text] of texts.entries()) {
  const room = stream.write({ tag, request: { query: { text }, page_size: 3 } });
  if (!room) await new Promise((resume) => stream.once("drain", resume));
}
stream.end();
