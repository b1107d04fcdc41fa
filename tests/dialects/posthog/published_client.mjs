// Carries out calls of the published API client, unmodified, and prints what each of them came to.
//
// argv: the directory of the packages. stdin: {url, project, key, fresh, calls: [[method, ...arguments], …]}.
// stdout: a list of {value} or {error: {message, status, retryable}}, and how often a fresh key was asked for.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const agent = join(process.argv[2], "node_modules/@posthog/agent");
const { exports } = JSON.parse(await readFile(join(agent, "package.json"), "utf8"));
const { PostHogAPIClient } = await import(pathToFileURL(join(agent, exports["./posthog-api"].import)));

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { url, project, key, fresh, calls } = JSON.parse(Buffer.concat(chunks));

let refreshed = 0;
const client = new PostHogAPIClient({
  apiUrl: url,
  projectId: project,
  getApiKey: () => key,
  ...(fresh ? { refreshApiKey: () => (refreshed++, fresh) } : {}),
});

// The form is sent as the package's own uploader does.
async function sendForm(prepared, text) {
  const form = new FormData();
  for (const [name, value] of Object.entries(prepared.presigned_post.fields)) form.append(name, value);
  form.append("file", new Blob([text], { type: prepared.content_type }), prepared.name);
  return (await fetch(prepared.presigned_post.url, { method: "POST", body: form })).status;
}

const results = [];
for (const [method, ...args] of calls) {
  try {
    let value = await (method === "sendForm" ? sendForm(...args) : client[method](...args));
    if (value instanceof ArrayBuffer) value = Buffer.from(value).toString("utf8");
    results.push({ value: value ?? null });
  } catch (error) {
    results.push({ error: { message: String(error.message), status: error.status ?? null, retryable: error.retryable ?? null } });
  }
}
console.log(JSON.stringify({ results, refreshed }));
