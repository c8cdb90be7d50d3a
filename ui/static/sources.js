// What can be watched: a camera, or a clip that plays in the page. Both show themselves in a <video> element.
//
// A source has `video`, `time` [seconds on a clock that never runs backward], `patient` (whether it can be held
// until the server has room), `hold()`, `go()` and `close()`; it calls `onended` when nothing more will come.

export class SourceError extends Error {}

const REFUSED = "The camera was refused. Allow it beside the address of this page, then try again.";
const MISSING = "There is no camera. Plug one in, or watch a clip.";
const TAKEN = "The camera doesn't answer: another program may be using it.";
const INSECURE =
  "Browsers give a camera only to pages from this machine or over https. Open http://localhost on the machine " +
  "that serves, or start the server with --certificate and --key; a clip works here, too.";
const REASONS = { NotAllowedError: REFUSED, NotFoundError: MISSING, OverconstrainedError: MISSING };

export async function openCamera(video, deviceId) {
  if (!window.isSecureContext || !navigator.mediaDevices) throw new SourceError(INSECURE);
  const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "environment" } };
  let media;
  try {
    media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, ...which } });
  } catch (error) {
    throw new SourceError(REASONS[error.name] ?? TAKEN);
  }
  video.srcObject = media;
  await video.play();
  const [track] = media.getVideoTracks();
  const source = {
    video,
    deviceId: track.getSettings().deviceId,
    patient: false,
    get time() {
      return performance.now() / 1000;
    },
    close() {
      for (const track of media.getTracks()) track.stop();
      video.srcObject = null;
    },
  };
  track.onended = () => source.onended?.();
  return source;
}

export async function openClip(video, file) {
  if (!file) throw new SourceError("Choose a video file first.");
  const url = URL.createObjectURL(file);
  video.src = url;
  try {
    await video.play();
  } catch {
    URL.revokeObjectURL(url);
    video.removeAttribute("src");
    throw new SourceError(`This browser can't play ${file.name}. MP4 (H.264) and WebM play nearly everywhere.`);
  }
  const source = {
    video,
    patient: true,
    get time() {
      return video.currentTime;
    },
    hold: () => video.pause(),
    go: () => video.paused && !video.ended && video.play(),
    close() {
      video.onended = null;
      video.pause();
      video.removeAttribute("src");
      video.load();
      URL.revokeObjectURL(url);
    },
  };
  video.onended = () => source.onended?.();
  return source;
}

// A source of the server, whose pictures appear in an <img> element instead. There is nothing to send of it, and
// so neither `video` nor `time`, but a `name`.
export function openServerSource(video, image, name) {
  video.hidden = true;
  image.hidden = false;
  return {
    name,
    patient: false,
    close() {
      video.hidden = false;
      image.hidden = true;
      URL.revokeObjectURL(image.src);
      image.removeAttribute("src");
    },
  };
}

// The cameras that the page may name: [{ deviceId, label }].
export async function cameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter(({ kind, label }) => kind === "videoinput" && label);
}
