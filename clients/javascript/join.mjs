// node join.mjs http://127.0.0.1:8471 NAME FILE.csv
// node join.mjs https://HOST:8471 NAME FILE.csv --key key.pem --cert cert.pem --ca ca.pem
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { Client } from "./atoll.mjs";
import { read } from "./csv.mjs";

const options = Object.fromEntries(["key", "cert", "ca"].map((name) => [name, { type: "string" }]));
const { positionals: [url, name, file], values } = parseArgs({ options, allowPositionals: true });
if (!file) throw new Error("usage: node join.mjs URL NAME FILE.csv [--key FILE --cert FILE --ca FILE]");
const send = url.startsWith("https:") ? await overTLS(values) : undefined;
const client = new Client(url, name, (plan) => read(readFileSync(file, "utf8"), plan), { say: console.log, send });
for (const sign of ["SIGTERM", "SIGINT"]) process.once(sign, () => client.leave());
try {
  await client.run();
  console.log("the run is over");
} catch (error) {
  console.error(error.name === "AbortError" ? "left" : `error: ${error.message}`);
  process.exitCode = error.name === "AbortError" ? 0 : 2;
}

/** Requests over TLS 1.3 with a client certificate, which fetch cannot show in Node.js. */
async function overTLS(files) {
  const { Agent, request } = await import("node:https");
  const pem = Object.fromEntries(Object.entries(files).map(([each, path]) => [each, readFileSync(path)]));
  const agent = new Agent({ keepAlive: true, minVersion: "TLSv1.3", ...pem });
  return (address, { method, headers, body, signal }) => new Promise((done, failed) => {
    request(address, { method, headers, signal, agent }, (found) => {
      const parts = [];
      found.on("data", (part) => parts.push(part)).on("error", failed);
      found.on("end", () => done({ status: found.statusCode, arrayBuffer: async () => new Uint8Array(Buffer.concat(parts)) }));
    }).on("error", failed).end(body ?? undefined);
  });
}
