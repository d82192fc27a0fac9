// client_test.js: a Node client against real services. BINARIES and ROOT come from the environment.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

import { connect, describe, fromProtos, grpc } from "./viommu.js";

const { BINARIES, ROOT } = process.env;
const folder = mkdtempSync(path.join(tmpdir(), "viommu-node."));
const processes = [];
let hypervisorAddress, guestAddress, guest, hypervisor;

function start(program, ...flags) {
  const child = spawn(path.join(BINARIES, program), flags, { stdio: ["ignore", "pipe", "ignore"] });
  processes.push(child);
  return new Promise((resolve, reject) => {
    let text = "";
    child.on("exit", (code) => reject(new Error(`${program} ended with ${code}`)));
    child.stdout.on("data", (data) => {
      text += data;
      const found = /READY grpc=(\S+)/.exec(text);
      if (found) resolve(found[1]);
    });
  });
}

before(async () => {
  hypervisorAddress = await start("hypervisor_svc", `--listen=unix:${folder}/hv`, "--metrics=off");
  guestAddress = await start("guest_svc", `--listen=unix:${folder}/guest`, "--metrics=off",
    `--hypervisor=${hypervisorAddress}`, "--policy=strict");
  guest = await connect(guestAddress, "GuestService");
  hypervisor = await connect(hypervisorAddress, "HypervisorService");
});

after(async () => {
  guest?.close();
  hypervisor?.close();
  for (const child of processes.reverse()) {
    child.removeAllListeners("exit");
    const code = new Promise((resolve) => child.on("exit", resolve));
    child.kill("SIGTERM");
    assert.equal(await code, 0);
  }
  rmSync(folder, { recursive: true });
});

test("reflection names the services, and the same calls as the proto files", async () => {
  const { services } = await describe(guestAddress, grpc.credentials.createInsecure());
  assert.ok(services.includes("viommu.v1.GuestService"), services.join());
  const byFile = fromProtos(path.join(ROOT, "proto"), guestAddress, "GuestService");
  assert.deepEqual(Object.keys(guest).sort(), Object.keys(byFile).sort());
  assert.ok("RunWorkload" in guest);
  assert.equal((await byFile.GetPolicy()).effective_policy, "strict");
  byFile.close();
});

test("maps, reads and writes as the device, unmaps, and reads the fault", async () => {
  const device = 0x0800;
  const { domain } = await guest.CreateDomain({ dma_mask_bits: 32 });
  await guest.AttachDevice({ domain, source_id: device });
  const mapped = await guest.Map({
    domain, access: "ACCESS_KIND_READ_WRITE", allocate_bytes: 8192,
  });
  assert.equal(mapped.size_bytes, "8192");
  assert.ok(BigInt(mapped.iova) < 1n << 32n, mapped.iova);

  const data = Buffer.from("written by a device");
  const wrote = await guest.Access({ source_id: device, iova: mapped.iova, write_data: data });
  assert.equal(wrote.fault_reason, 0);
  const read = await guest.Access({ source_id: device, iova: mapped.iova, read_size_bytes: data.length });
  assert.deepEqual(read.read_data, data);

  const sessions = (await hypervisor.ListSessions()).sessions;
  assert.equal(sessions.length, 1);
  assert.equal(sessions[0].live_page_count, "2");

  const unmapped = await guest.Unmap({ domain, iova: mapped.iova, size_bytes: mapped.size_bytes });
  assert.equal(unmapped.deferred, false);
  const late = await guest.Access({ source_id: device, iova: mapped.iova, read_size_bytes: 8 });
  assert.notEqual(late.fault_reason, 0);
  assert.equal(late.stale, false);

  const { faults } = await guest.ReadFaults();
  assert.equal(faults.length, 1);
  assert.equal(faults[0].source_id, device);
  assert.equal(faults[0].reason, late.fault_reason);
  assert.equal(BigInt(faults[0].iova) >> 12n, BigInt(mapped.iova) >> 12n);
  assert.deepEqual((await guest.ReadFaults()).faults, []);  // reading clears

  await guest.DetachDevice({ source_id: device });
  await guest.DeleteDomain({ domain });
});

test("a stream of operations answers one for one, in order", async () => {
  const { domain } = await guest.CreateDomain({});
  await guest.AttachDevice({ domain, source_id: 0x0900 });
  const stream = guest.StreamOps();
  const replies = stream[Symbol.asyncIterator]();
  const iovas = new Set();
  for (let i = 0; i < 16; ++i) {
    stream.write({ map: { domain, access: "ACCESS_KIND_READ_WRITE", allocate_bytes: 4096 } });
    const { value } = await replies.next();
    assert.equal(value.status?.code ?? 0, 0);
    iovas.add(value.map.iova);
  }
  assert.equal(iovas.size, 16);
  // One wrong among right ones: its own status says so, the stream goes on.
  const [first] = iovas;
  stream.write({ unmap: { domain: domain + 1000, iova: first, size_bytes: 4096 } });
  stream.write({ unmap: { domain, iova: first, size_bytes: 4096 } });
  const wrong = (await replies.next()).value;
  const right = (await replies.next()).value;
  assert.notEqual(wrong.status.code, 0);
  assert.equal(right.status?.code ?? 0, 0);
  stream.end();
  assert.equal((await replies.next()).done, true);
});

test("the hypervisor streams faults to whoever watches", async () => {
  const device = 0x0a00;
  const { domain } = await guest.CreateDomain({});
  await guest.AttachDevice({ domain, source_id: device });
  const watch = hypervisor.WatchFaults({});
  const fault = new Promise((resolve, reject) => {
    // What was retained comes first: other tests' faults too.
    watch.on("data", ({ faults }) => {
      const mine = faults.find((f) => f.source_id === device);
      if (mine) resolve(mine);
    });
    watch.on("error", reject);
  });
  const missed = await guest.Access({ source_id: device, iova: "1048576", read_size_bytes: 4 });
  const seen = await fault;
  watch.removeAllListeners("error");
  watch.on("error", () => {});
  watch.cancel();
  assert.equal(seen.iova, "1048576");
  assert.equal(seen.reason, missed.fault_reason);
});

test("errors have the code that the call documents", async () => {
  await assert.rejects(guest.Unmap({ domain: 4711, iova: "4096", size_bytes: "4096" }),
    (error) => error.code === grpc.status.NOT_FOUND);
  const nobody = fromProtos(path.join(ROOT, "proto"), `unix:${folder}/nobody`, "GuestService");
  await assert.rejects(nobody.GetPolicy(), (error) => error.code === grpc.status.UNAVAILABLE);
  nobody.close();
});
