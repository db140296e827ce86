// What the page asks of the server that it came from.

/** An answer of the server that is no success; its message is one line for people. */
export class Refused extends Error {}

/** The server asks for a token, or for another one. */
export class TokenNeeded extends Refused {}

// Who it is.
let name = new URLSearchParams(location.search).get("person");

// Kept until the tab is closed, and never in the address, which is logged and shared.
const TOKEN = "fsa-token";

/** Sends a token from now on. */
export const useToken = (token) => sessionStorage.setItem(TOKEN, token);

const person = () => `page/people/${encodeURIComponent(name)}`;

async function request(path, options = {}) {
  let response;
  try {
    const token = sessionStorage.getItem(TOKEN);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch {
    throw new Refused("The program that serves this page does not answer. Start it again.");
  }
  if (response.status === 401) {
    const sent = sessionStorage.getItem(TOKEN);
    sessionStorage.removeItem(TOKEN);
    throw new TokenNeeded(sent ? "The server does not know this token." : "");
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

/** Returns what does not depend on the person; the server says who asks by default. */
export async function session() {
  const found = await (await request("page/session")).json();
  name ??= found.person;
  return found;
}

export const view = (asked) => post(`${person()}/view`, asked);
export const answer = (kind, options, asked) => post(`${person()}/answers`, { kind, options, ...asked });
export const undo = (asked) => post(`${person()}/undo`, asked);
export const load = (file) => send(`${person()}/table`, file);
export const place = (file) => send("page/place", file);

/** Returns a file about the person: its bytes, and the name to save it under. */
export async function file(what) {
  const path = what === "adapter" ? `v1/people/${encodeURIComponent(name)}/adapter` : `${person()}/${what}`;
  const response = await request(path);
  const saved = response.headers.get("Content-Disposition")?.match(/filename="(.*)"/)?.[1];
  return { blob: await response.blob(), name: saved || what };
}

/** Reads a text that is written meanwhile; calls `more` with each piece of it. */
export async function write(body, more, signal) {
  const response = await request(`${person()}/write`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    more(value);
  }
}
