// Requests to the service; every error becomes an Error whose message is one line.

const TOKEN = 'token';
let askForToken = null;

/** Sets what gives a token when the service wants one: () => Promise of text. */
export function onLocked(ask) { askForToken = ask; }

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function unlock() {
  sessionStorage.setItem(TOKEN, await askForToken());
}

function told(text, status) {
  try {
    return JSON.parse(text).error || `The service answered ${status}.`;
  } catch {
    return `The service answered ${status}.`;
  }
}

/** The answer to a request, as JSON, or as text where it is none. */
export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method, headers: headers(body ? { 'Content-Type': 'application/json' } : {}),
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new Error('The service cannot be reached.');
  }
  if (answer.status === 401 && askForToken) {
    await unlock();
    return call(method, path, body);
  }
  const text = await answer.text();
  if (!answer.ok) throw Object.assign(new Error(told(text, answer.status)), { status: answer.status });
  return (answer.headers.get('Content-Type') || '').includes('json') ? JSON.parse(text) : text;
}

/** Uploads a file; `tell(share)` hears how far it is, `signal` aborts it. */
export function upload(file, tell, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', `v1/videos?name=${encodeURIComponent(file.name)}`);
    for (const [name, value] of Object.entries(headers({ 'Content-Type': 'application/octet-stream' }))) {
      request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => tell(event.loaded / Math.max(event.total, 1));
    request.onload = () => (request.status < 400
      ? resolve(JSON.parse(request.responseText))
      : reject(new Error(told(request.responseText, request.status))));
    request.onerror = () => reject(new Error('The upload broke off.'));
    request.onabort = () => reject(new DOMException('cancelled', 'AbortError'));
    signal.addEventListener('abort', () => request.abort());
    request.send(file);
  });
}
