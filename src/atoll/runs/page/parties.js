"use strict";
// What parties with different columns said to each other, and how good their model is.

(() => {
  const { $, setText, known, number, percent, bytes, count, plural } = Base;
  const { panel, table } = Panels;
  const SHARES = ["accuracy", "ks"];

  const told = (name, value) => (SHARES.includes(name) ? percent(value) : number(value, 4));

  panel("parties", (run) => Boolean(run.said), (section) => (run) => {
    const { train = {}, test = {}, common, ciphertexts = 0 } = run.ending || {};
    const names = Object.keys(Object.keys(test).length ? test : train);
    const total = run.said.reduce((sum, each) => sum + each.nbytes, 0);
    Base.figures($("dl", section), [
      ...(known(common) ? [["Rows in common", count(common), "by private set intersection"]] : []),
      ...names.map((name) => [name.toUpperCase(), told(name, known(test[name]) ? test[name] : train[name]), known(test[name]) ? `on test rows; ${told(name, train[name])} on training rows` : "on training rows"]),
      ["Ciphertexts", count(ciphertexts), "sent by all parties"],
      ["Sent", bytes(total), "by all parties, without framing"],
    ]);
    $(".said", section).replaceChildren(table(
      ["From", "To", "What", "Messages", "Bytes", "Cipher", "Ciphertexts", "What its receiver can learn"],
      run.said.map((each) => [each.sender, each.receiver, each.kind, count(each.messages), bytes(each.nbytes), each.under || "open", each.ciphertexts ? count(each.ciphertexts) : "–", each.tells])));
    setText($(".note", section), `${plural(run.said.length, "kind")} of message, ${bytes(total)} in all.`);
  });
})();
