// Connects to the search server: TLS, token, retries; knows no method.
//
// SEARCH_CLIENT_ADDRESS, SEARCH_CLIENT_TOKEN and SEARCH_CLIENT_ROOTS are those of the Python client.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const FILES = ["search_service", "embedding_service", "image_service", "index_service", "operation_service"];

const definition = protoLoader.loadSync(FILES.map((name) => `imageretrieval/v1/${name}.proto`), {
  includeDirs: [PROTOS],
  keepCase: true, // page_size, as in the .proto files
  longs: Number, // counts and versions stay below 2^53
  enums: String,
  defaults: true,
  oneofs: true,
});

export const { v1 } = grpc.loadPackageDefinition(definition).imageretrieval;

// What may come twice is repeated where the code tells that it passes by itself (docs/errors.md); a server that tells when
// to come again is asked then.
const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: [{ service: "imageretrieval.v1.SearchService" }, { service: "imageretrieval.v1.EmbeddingService" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

// A client of one service, such as v1.SearchService.
export function connect(Service, environment = process.env) {
  const { SEARCH_CLIENT_ADDRESS: address = "127.0.0.1:50051", SEARCH_CLIENT_ROOTS: roots } = environment;
  const token = environment.SEARCH_CLIENT_TOKEN;
  if (token && !roots && !/^(127\.0\.0\.1|localhost|\[::1\]):/.test(address))
    throw new Error(`without TLS, everybody on the way to ${address} could read the token: set SEARCH_CLIENT_ROOTS`);
  const credentials = roots ? grpc.credentials.createSsl(readFileSync(roots)) : grpc.credentials.createInsecure();
  return new Service(address, credentials, {
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    "grpc.max_send_message_length": 33 * 1024 * 1024, // the server takes no more
    "grpc.max_receive_message_length": 33 * 1024 * 1024,
    interceptors: token ? [withToken(token)] : [],
  });
}

// Sends the token with every call.
function withToken(token) {
  return (options, nextCall) =>
    new grpc.InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set("authorization", `Bearer ${token}`);
        next(metadata, listener);
      },
    });
}

// Resolves to the answer of one call, which may take so many seconds.
export function ask(client, method, request, seconds = 10) {
  return new Promise((resolve, reject) => {
    const answered = (error, response) => (error ? reject(error) : resolve(response));
    client[method](request, { deadline: Date.now() + 1000 * seconds }, answered);
  });
}
