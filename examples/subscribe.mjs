// Keep every user's newest slate, in JavaScript: node examples/subscribe.mjs
//
// Needs the npm package kafkajs. Shown as a starting point: unlike the Python examples, no test runs it.

import { Kafka, logLevel } from "kafkajs";

const COLD_START = "\u0000cold-start"; // the slate for users whom nobody knows yet
const broker = process.env.STREAM_APP_BROKER ?? "127.0.0.1:9092";

const kafka = new Kafka({ clientId: "slates", brokers: broker.split(","), logLevel: logLevel.WARN });
// a group of its own, so that this process sees all users; kafkajs reads committed records only unless
// `readUncommitted` says otherwise, which is how slates must be read
const consumer = kafka.consumer({ groupId: `slates-${process.pid}-${Date.now()}` });
const slates = new Map();

/** The slate to show to a user: their own, else the one for users whom nobody knows. */
export const slateOf = (user) => slates.get(user) ?? slates.get(COLD_START);

await consumer.connect();
await consumer.subscribe({ topic: "recommendations", fromBeginning: true });
await consumer.run({
  eachMessage: async ({ message }) => {
    const user = message.key.toString();
    if (message.value === null) {
      slates.delete(user); // erased, or faded
      return;
    }
    const slate = JSON.parse(message.value.toString());
    slates.set(user, slate);
    console.log(user, slate.items.map((item) => item.content_id));
  },
});
