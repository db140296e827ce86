// What the page asks of the server that it came from.

/** An answer of the server that is no success; its message is one line for people. */
export class Refused extends Error {}

const NAME = new URLSearchParams(location.search).get("person") ?? "me";
const person = `page/people/${encodeURIComponent(NAME)}`;

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The program that serves this page does not answer. Start it again.");
  }
  if (!response.ok) throw new Refused(await reason(response));
  return response;
}

async function reason(response) {
  const body = await response.json().catch(() => ({}));
  const detail = body.detail ?? body.error?.message ?? response.statusText;
  return typeof detail === "string" ? detail : JSON.stringify(detail);
}

const post = async (path, body) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

const send = async (path, file) =>
  (await request(`${path}?file=${encodeURIComponent(file.name)}`, {
    method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
  })).json();

export const session = async () => (await request("page/session")).json();
export const view = (asked) => post(`${person}/view`, asked);
export const answer = (kind, options, asked) => post(`${person}/answers`, { kind, options, ...asked });
export const undo = (asked) => post(`${person}/undo`, asked);
export const load = (file) => send(`${person}/table`, file);
export const place = (file) => send("page/place", file);
export const download = (name) => `${person}/${name}`;
export const adapter = () => `v1/people/${encodeURIComponent(NAME)}/adapter`;

/** Reads a text that is written meanwhile; calls `more` with each piece of it. */
export async function write(body, more, signal) {
  const response = await request(`${person}/write`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    more(value);
  }
}
