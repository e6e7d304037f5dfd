// node join.mjs http://127.0.0.1:8471 NAME FILE.csv
// node join.mjs https://HOST:8471 NAME FILE.csv --keys DIR      (what `atoll ca enrol --keys DIR` has written)
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { Client } from "./atoll.mjs";
import { read } from "./csv.mjs";

const { positionals, values } = parseArgs({ options: { keys: { type: "string" } }, allowPositionals: true });
const [url, name, file] = positionals;
if (!file || url.startsWith("https:") !== Boolean(values.keys)) {
  console.error("usage: node join.mjs http://127.0.0.1:PORT NAME FILE.csv, or https://HOST:PORT ... --keys DIR");
  process.exit(2);
}
const send = values.keys ? await overTLS(values.keys) : undefined;
const load = (plan) => read(readFileSync(file, "utf8"), plan);
const client = new Client(url, name, load, { say: console.log, send });
for (const sign of ["SIGTERM", "SIGINT"]) process.once(sign, () => client.leave());
try {
  await client.run();
  console.log("the run is over");
} catch (error) {
  console.error(error.name === "AbortError" ? "left" : `error: ${error.message}`);
  process.exitCode = error.name === "AbortError" ? 0 : 2;
}

/** Requests over TLS 1.3 with a client certificate, which fetch cannot show in Node.js. */
async function overTLS(keys) {
  const { Agent, request } = await import("node:https");
  const own = readFileSync(join(keys, "identity.pem")); // the key and its certificate
  const ca = readFileSync(join(keys, "ca.pem"));
  const agent = new Agent({ keepAlive: true, minVersion: "TLSv1.3", key: own, cert: own, ca });
  return (address, { method, headers, body, signal }) => new Promise((done, failed) => {
    request(address, { method, headers, signal, agent }, (found) => {
      const parts = [];
      found.on("data", (part) => parts.push(part)).on("error", failed);
      const arrayBuffer = async () => new Uint8Array(Buffer.concat(parts));
      found.on("end", () => done({ status: found.statusCode, arrayBuffer }));
    }).on("error", failed).end(body ?? undefined);
  });
}
