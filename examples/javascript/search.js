// One search: node search.js "a red bicycle" ["but not this"]

import { ask, connect, v1 } from "./connection.js";
import { detailsOf } from "./errors.js";

const [text, minus] = process.argv.slice(2);
const query = minus
  ? { composition: { parts: [{ query: { text } }, { query: { text: minus }, weight: -1 }] } }
  : { text };

const client = connect(v1.SearchService);
try {
  const response = await ask(client, "Search", { query, page_size: 5, read_mask: { paths: ["image_id", "score"] } });
  for (const hit of response.hits) console.log(hit.score.toFixed(3), hit.image_id);
} catch (error) {
  const { ErrorInfo, BadRequest } = detailsOf(error);
  console.error(`${ErrorInfo?.reason ?? error.code}: ${error.details}`);
  for (const violation of BadRequest?.field_violations ?? []) console.error(`  ${violation.field}`);
  process.exitCode = 2;
} finally {
  client.close();
}
