// Answers requests with llama.cpp, through the npm package node-llama-cpp and its built libraries.
//
//     node llama_cpp.mjs PACKAGES MODEL.gguf THREADS plain|lookup
//
// PACKAGES is the folder in which `npm install node-llama-cpp --ignore-scripts` was run. Each line
// of stdin is a request {"ids": [...], "limit": n}; each line of stdout is an answer
// {"ids": [...], "first": s, "seconds": s}, with the seconds to the first token and to the last.

import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [packages, modelPath, threads, kind] = process.argv.slice(2);
const entry = `${packages}/node_modules/node-llama-cpp/dist/index.js`;
const {getLlama, InputLookupTokenPredictor} = await import(pathToFileURL(entry).href);

const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 2048, threads: Number(threads)});
const predictor = kind === "lookup" ? {tokenPredictor: new InputLookupTokenPredictor()} : {};
const sequence = context.getSequence(predictor);

for await (const line of createInterface({input: process.stdin})) {
    const {ids, limit} = JSON.parse(line);
    await sequence.clearHistory();
    const begin = performance.now();
    const times = [];
    const answer = [];
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        times.push(performance.now());
        answer.push(token);
        if (answer.length === limit || model.isEogToken(token)) break;
    }
    const seconds = times.map((time) => (time - begin) / 1000);
    const result = {ids: answer, first: seconds[0], seconds: seconds[seconds.length - 1]};
    process.stdout.write(JSON.stringify(result) + "\n");
}
process.exit(0);
