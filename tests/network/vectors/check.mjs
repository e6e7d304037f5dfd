// What the JavaScript client makes of the vectors, as JSON on the standard output: `node check.mjs`.
import { readFileSync } from "node:fs";

import { decode, encode, evaluate, Level, train } from "../../../clients/javascript/atoll.mjs";

const read = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url), "utf8"));
const bytesOf = (text) => Uint8Array.from(Buffer.from(text, "hex"));
const hex = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
const FLOATS = { nan: NaN, inf: Infinity, "-inf": -Infinity };
const ARRAYS = {
  F64: Float64Array, F32: Float32Array, F16: Uint16Array, BF16: Uint16Array, I64: BigInt64Array, I32: Int32Array,
  I16: Int16Array, I8: Int8Array, U8: Uint8Array, BOOL: Uint8Array,
};

/** A float from its hexadecimal text, by other means than the client's. */
function float(text) {
  if (text in FLOATS) return FLOATS[text];
  const [, sign, whole, part, power] = /^(-?)0x(.)\.(.*)p(.*)$/.exec(text);
  const scale = 2 ** Math.max(power, -1000) * 2 ** Math.min(0, Number(power) + 1000); // in two steps, or it is 0
  return (sign ? -1 : 1) * ((parseInt(whole, 16) + parseInt(part, 16) / 16 ** part.length) * scale);
}

/** A record from its description. */
function made({ kind, value, fields, shape, bytes }) {
  if (fields) return new Level(kind, fields.map(([name, each]) => [name, made(each)]));
  if (shape) return { dtype: kind, shape, data: new (ARRAYS[kind])(bytesOf(bytes).buffer) };
  return kind === "int" ? BigInt(value) : kind === "float" ? float(value) : kind === "none" ? null : value;
}

function refusal(bytes) {
  try {
    decode(bytesOf(bytes));
    return null;
  } catch (error) {
    return error.name === "Error" && "problem" in error ? error.message : `another error: ${error}`;
  }
}

const { data, steps } = read("exchange.json");
const split = ([rows, labels]) => ({ inputs: Float32Array.from(rows.flat()), labels, width: 4, classes: 2 });
const plan = JSON.parse(steps.find(({ what }) => what === "the node joins").response.text).plan;
const [trained, judged] = steps.filter(({ what }) => what === "its body").map(({ response }) => decode(bytesOf(response.bytes)));

console.log(JSON.stringify({
  records: read("records.json").map(({ bytes, record }) => [hex(encode(decode(bytesOf(bytes)))), hex(encode(made(record)))]),
  refused: read("refused.json").map(({ bytes }) => refusal(bytes)),
  answers: [
    hex(encode(new Level("record", [["client", 0n], ["reply", await train(trained, split(data.train), plan.hyper)]]))),
    hex(encode(new Level("record", [["client", 0n], ["reply", evaluate(judged, split(data.test))]]))),
  ],
}));
