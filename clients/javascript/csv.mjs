// Rows of a CSV file as the data of a node: numbers to learn from, one column to predict.

/** The data of a text, read as a plan asks: `plan.data` names the label, the features and the classes. */
export function read(text, plan) {
  const { label, features, classes, ...more } = plan.data;
  if (Object.keys(more).length) throw new Error(`this client reads plain numbers, and knows no ${Object.keys(more)}`);
  const lines = text.replace(/^\ufeff/, "").split(/\r?\n/).filter((line) => line.trim());
  const [header, ...rows] = lines.map((line) => line.split(",").map((field) => field.trim()));
  const columns = (features ?? header.filter((name) => name !== label && name)).map((name) => place(header, name));
  const target = place(header, label);
  const counted = Array.from({ length: Number(classes) || 0 }, (_, at) => `${at}`);
  const names = Array.isArray(classes) ? classes.map(String) : counted;
  if (names.length < 2) throw new Error("the plan must say which classes there are: classes = 3, or their labels");
  const samples = rows.map((row, at) => {
    const inputs = columns.map((column) => number(row[column], header[column], at));
    const found = names.indexOf(Array.isArray(classes) ? row[target] : `${number(row[target], label, at)}`);
    if (found < 0) throw new Error(`row ${at}: ${label} is ${row[target]}, and no class`);
    return { inputs, label: found };
  });
  return { width: columns.length, classes: names.length, ...divided(samples, plan) };
}

/** Samples in the parts that the plan asks for: every so-manyth one is kept for a test, or for validation. */
function divided(samples, { test, validation }) {
  const shares = { test: test === "auto" ? 0.2 : test ?? 0, validation };
  if (validation >= 1) shares.validation /= samples.length; // so many, and no share
  const parts = { train: [], test: [], validation: [] }, due = { test: 0, validation: 0 };
  for (const sample of samples) {
    due.test += shares.test;
    due.validation += shares.validation;
    const part = due.test >= 1 ? "test" : due.validation >= 1 ? "validation" : "train";
    if (part !== "train") due[part] -= 1;
    parts[part].push(sample);
  }
  const split = (part) => ({
    inputs: Float32Array.from(part.flatMap(({ inputs }) => inputs)), labels: part.map(({ label }) => label),
  });
  return Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, part.length ? split(part) : null]));
}

function place(header, name) {
  const at = header.indexOf(name);
  if (at < 0) throw new Error(`there is no column ${name}; there are ${header.join(", ")}`);
  return at;
}

function number(field, name, at) {
  const found = Number(field);
  if (!field || !Number.isFinite(found)) throw new Error(`row ${at}: ${name} is ${field || "missing"}, and no number`);
  return found;
}
