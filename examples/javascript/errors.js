// Reads why a call was refused: the stable reason, the fields at fault, when to come again; knows no method.

import protobuf from "protobufjs";

// The parts of https://github.com/googleapis/googleapis/tree/master/google/rpc that are used here.
const { root } = protobuf.parse(
  `syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; string reason = 3; }
    repeated FieldViolation field_violations = 1;
  }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message ResourceInfo { string resource_type = 1; string resource_name = 2; string owner = 3; string description = 4; }
  message RequestInfo { string request_id = 1; string serving_data = 2; }`,
  new protobuf.Root(),
  { keepCase: true },
);

// The details of a failed call, by name: { ErrorInfo: { reason }, BadRequest: { field_violations }, … }.
export function detailsOf(error) {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  return packed ? unpack(root.lookupType("google.rpc.Status").decode(packed).details) : {};
}

// The same of the `error` that stands in the place of an answer in a batch or a stream.
export function unpack(details) {
  const found = {};
  for (const { type_url, value } of details) {
    const name = type_url.split("/").pop();
    const type = name.startsWith("google.rpc.") ? root.lookup(name) : null;
    if (type) found[type.name] = type.toObject(type.decode(value), { longs: Number });
  }
  return found;
}
