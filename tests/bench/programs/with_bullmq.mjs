// BullMQ on Node. At least once: a job has a lock while it is worked on, and stalled ones are moved back.
//
// Its documentation has `addBulk`, `removeOnComplete`, and for `concurrency` "something between 100 and 300 is a quite
// standard setting" (https://docs.bullmq.io/guide/parallelism-and-concurrency); ioredis is the client it is tried with.

import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";

const require = createRequire(`${process.env.BENCH_MODULES}/`);
const { Queue, Worker } = require("bullmq");

const CALLERS = 32;
const BATCH = 1000;
const CONCURRENCY = 200;

const [program, url, count, bytes] = [process.argv[2], new URL(process.argv[3]), +process.argv[4], +process.argv[5]];
const connection = { host: url.hostname, port: +url.port, db: +(url.pathname.slice(1) || 0), maxRetriesPerRequest: null };
const options = { removeOnComplete: true };

const payload = (number) => ({ user: `user-${number % 1000}`, number, text: "x".repeat(bytes) });
const say = (words) => process.stdout.write(`${JSON.stringify(words)}\n`);

async function fill() {
  const queue = new Queue("bench", { connection });
  await queue.add("handle", payload(0), options);
  let number = 1;
  const caller = async () => {
    while (number < count) await queue.add("handle", payload(number++), options);
  };
  const began = performance.now();
  await Promise.all(Array.from({ length: CALLERS }, caller));
  say({ event: "enqueued", seconds: (performance.now() - began) / 1000 });
  await queue.close();
}

async function fillMany() {
  const queue = new Queue("bench", { connection });
  const jobs = Array.from({ length: count }, (_, number) => ({ name: "handle", data: payload(number), opts: options }));
  await queue.addBulk(jobs.slice(0, 1));
  const began = performance.now();
  for (let first = 1; first < count; first += BATCH) await queue.addBulk(jobs.slice(first, first + BATCH));
  say({ event: "enqueued", seconds: (performance.now() - began) / 1000 });
  await queue.close();
}

function work() {
  let number = 0;
  let began = 0;
  new Worker(
    "bench",
    async () => {
      number += 1;
      if (number === 1) {
        began = performance.now();
        say({ event: "first" });
      } else if (number === count) {
        say({ event: "last", seconds: (performance.now() - began) / 1000 });
      }
    },
    { connection, concurrency: CONCURRENCY },
  );
}

await { fill, "fill-many": fillMany, work }[program]();
