// The page index.html: a form in front of a node.
import { Client } from "./atoll.mjs";
import { read } from "./csv.mjs";

const at = (id) => document.getElementById(id);
let client = null;

function say(text) {
  at("state").textContent = text;
  at("log").append(Object.assign(document.createElement("li"), { textContent: text }));
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = at("file").files[0], text = await file.text();
  client = new Client(location.origin, at("name").value, (plan) => read(text, plan), { say });
  at("join").disabled = true;
  at("leave").disabled = false;
  say("joining");
  try {
    await client.run();
    say("the run is over");
  } catch (error) {
    say(error.name === "AbortError" ? "left" : `error: ${error.message}`);
  }
  at("join").disabled = false;
  at("leave").disabled = true;
});
at("leave").addEventListener("click", () => client.leave());
addEventListener("pagehide", () => client?.leave());
