// A client that shares no code with the server: the gRPC stack of Node.js, with proto/inference.proto read at run time.
'use strict';
const assert = require('assert');
const fs = require('fs');
const path = require('path');

const kSkip = 77;
if (!fs.existsSync(path.join(__dirname, 'node_modules', '@grpc', 'grpc-js'))) {
  console.log('skipped: @grpc/grpc-js is not installed; run `npm ci` in tests/interop');
  process.exit(kSkip);
}
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const load = (file) => grpc.loadPackageDefinition(loader.loadSync(file, {keepCase: true, longs: Number, defaults: true, oneofs: true}));
const inference = load(path.join(__dirname, '..', '..', 'proto', 'inference.proto')).inference;
const health = load(path.join(__dirname, 'health.proto')).grpc.health.v1;
const target = process.env.TIDEPOOL_GRPC;
const insecure = grpc.credentials.createInsecure();
const options = {'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1};
const client = new inference.GRPCInferenceService(target, insecure, options);

const call = (stub, method, request, milliseconds = 30000) => new Promise((resolve, reject) => {
  stub[method](request, {deadline: Date.now() + milliseconds}, (error, answer) => error ? reject(error) : resolve(answer));
});
const failsWith = async (promise, code, pattern) => {
  const error = await promise.then(() => assert.fail('the call succeeded'), (failed) => failed);
  assert.strictEqual(error.code, code, error.message);
  assert.match(error.details, pattern);
};

const pixels = 3 * 32 * 32;
const image = new Float32Array(pixels).map((_, i) => Math.sin(i));
const rawBytes = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
const floats = (buffer) => Array.from({length: buffer.length / 4}, (_, i) => buffer.readFloatLE(4 * i));
const pictureRequest = (change = {}) => ({
  model_name: 'picture', id: 'p1',
  inputs: [{name: 'image', datatype: 'FP32', shape: [1, 3, 32, 32]}],
  raw_input_contents: [rawBytes(image)],
  ...change,
});

async function metadata() {
  assert.strictEqual((await call(client, 'ServerLive', {})).live, true);
  assert.strictEqual((await call(client, 'ServerReady', {})).ready, true);
  assert.strictEqual((await call(client, 'ServerMetadata', {})).name, 'tidepool');
  assert.strictEqual((await call(client, 'ModelReady', {name: 'words'})).ready, true);
  const picture = await call(client, 'ModelMetadata', {name: 'picture'});
  assert.deepStrictEqual(picture.inputs, [{name: 'image', datatype: 'FP32', shape: [-1, 3, 32, 32]}]);
  const index = await call(client, 'RepositoryIndex', {});
  assert.deepStrictEqual(index.models.map((model) => model.name).sort(), ['picture', 'words']);
}

async function infer() {
  const raw = await call(client, 'ModelInfer', pictureRequest());
  assert.strictEqual(raw.id, 'p1');
  assert.deepStrictEqual(raw.outputs[0].shape, [1, 4]);
  const logits = floats(raw.raw_output_contents[0]);
  assert.strictEqual(logits.length, 4);
  assert.ok(logits.every(Number.isFinite));

  const typed = await call(client, 'ModelInfer', pictureRequest({
    inputs: [{name: 'image', datatype: 'FP32', shape: [1, 3, 32, 32], contents: {fp32_contents: Array.from(image)}}],
    raw_input_contents: [],
  }));
  assert.deepStrictEqual(typed.outputs[0].contents.fp32_contents, logits);

  const words = await call(client, 'ModelInfer', {
    model_name: 'words',
    inputs: [{name: 'input_ids', datatype: 'INT64', shape: [2, 16], contents: {int64_contents: Array.from({length: 32}, (_, i) => i)}}],
  });
  assert.deepStrictEqual(words.outputs[0].shape.slice(0, 2), [2, 16]);
}

async function sideBySide() {
  const alone = floats((await call(client, 'ModelInfer', pictureRequest())).raw_output_contents[0]);
  const answers = await Promise.all(Array.from({length: 32}, (_, i) => call(client, 'ModelInfer', pictureRequest({id: `n${i}`}))));
  answers.forEach((answer, i) => {
    assert.strictEqual(answer.id, `n${i}`);
    floats(answer.raw_output_contents[0]).forEach((value, k) => assert.ok(Math.abs(value - alone[k]) <= 1e-4 * (1 + Math.abs(alone[k]))));
  });
}

function stream() {
  return new Promise((resolve, reject) => {
    const duplex = client.ModelStreamInfer({deadline: Date.now() + 30000});
    const seen = [];
    duplex.on('data', (answer) => seen.push(answer));
    duplex.on('error', reject);
    duplex.on('end', () => {
      assert.strictEqual(seen.length, 2);
      const wrong = seen.find((answer) => answer.infer_response.id === 'wrong');
      assert.match(wrong.error_message, /^NOT_FOUND/);
      assert.strictEqual(seen.find((answer) => answer.infer_response.id === 'p1').error_message, '');
      resolve();
    });
    duplex.write(pictureRequest());
    duplex.write(pictureRequest({model_name: 'nothing', id: 'wrong'}));
    duplex.end();
  });
}

async function errors() {
  const {NOT_FOUND, INVALID_ARGUMENT, DEADLINE_EXCEEDED} = grpc.status;
  const send = (change) => call(client, 'ModelInfer', pictureRequest(change));
  await failsWith(send({model_name: 'nothing'}), NOT_FOUND, /nothing/);
  await failsWith(send({model_version: '99'}), NOT_FOUND, /99/);
  await failsWith(send({inputs: [{name: 'picture', datatype: 'FP32', shape: [1, 3, 32, 32]}]}), INVALID_ARGUMENT, /image/);
  await failsWith(send({inputs: [{name: 'image', datatype: 'FP64', shape: [1, 3, 32, 16]}]}), INVALID_ARGUMENT, /FP32/);
  await failsWith(send({inputs: [{name: 'image', datatype: 'FP32', shape: [1, 3, 32, 33]}]}), INVALID_ARGUMENT, /need/);
  await failsWith(send({inputs: [{name: 'image', datatype: 'FP32', shape: [-1, 3, 32, 32]}]}), INVALID_ARGUMENT, /dimensions/);
  await failsWith(send({raw_input_contents: [Buffer.alloc(5)]}), INVALID_ARGUMENT, /5 bytes/);
  await failsWith(call(client, 'ModelMetadata', {name: 'nothing'}), NOT_FOUND, /nothing/);
  await failsWith(call(client, 'ModelInfer', pictureRequest(), -1), DEADLINE_EXCEEDED, /./);
  await call(client, 'ModelInfer', pictureRequest());
}

async function standardServices() {
  const stub = new health.Health(target, insecure);
  assert.strictEqual((await call(stub, 'Check', {service: 'inference.GRPCInferenceService'})).status, 1);
  assert.strictEqual((await call(stub, 'Check', {service: ''})).status, 1);
  await failsWith(call(stub, 'Check', {service: 'nothing'}), grpc.status.NOT_FOUND, /./);
  stub.close();

  // Reflection: "list services" is field 7, an empty text. The answer has their names in it.
  const bytes = (buffer) => buffer;
  const generic = new grpc.Client(target, insecure);
  const listed = await new Promise((resolve, reject) => {
    const duplex = generic.makeBidiStreamRequest('/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo', bytes, bytes,
                                                 {deadline: Date.now() + 30000});
    duplex.on('data', resolve);
    duplex.on('error', reject);
    duplex.write(Buffer.from([0x3a, 0x00]));
    duplex.end();
  });
  assert.ok(listed.includes('inference.GRPCInferenceService'));
  assert.ok(listed.includes('grpc.health.v1.Health'));
  generic.close();
}

(async () => {
  for (const test of [metadata, infer, sideBySide, stream, errors, standardServices]) {
    await test();
    console.log(`ok ${test.name}`);
  }
  client.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
