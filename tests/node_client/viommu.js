// A client of the lab in JavaScript. It needs nothing of this repository: connect() asks the server
// for its own description (gRPC server reflection); fromProtos() reads the proto files instead.
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

// 64-bit addresses do not fit a JavaScript number: they are decimal strings. No field is left out.
const OPTIONS = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };

// grpc.reflection.v1alpha, as far as it is needed here.
const REFLECTION = protoLoader.fromJSON(
  {
    nested: {
      grpc: {
        nested: {
          reflection: {
            nested: {
              v1alpha: {
                nested: {
                  ServerReflectionRequest: {
                    oneofs: { message_request: { oneof: ["file_by_filename", "file_containing_symbol", "list_services"] } },
                    fields: {
                      file_by_filename: { type: "string", id: 3 },
                      file_containing_symbol: { type: "string", id: 4 },
                      list_services: { type: "string", id: 7 },
                    },
                  },
                  FileDescriptorResponse: {
                    fields: { file_descriptor_proto: { rule: "repeated", type: "bytes", id: 1 } },
                  },
                  ListServiceResponse: {
                    fields: { service: { rule: "repeated", type: "ServiceResponse", id: 1 } },
                  },
                  ServiceResponse: { fields: { name: { type: "string", id: 1 } } },
                  ErrorResponse: {
                    fields: { error_code: { type: "int32", id: 1 }, error_message: { type: "string", id: 2 } },
                  },
                  ServerReflectionResponse: {
                    fields: {
                      file_descriptor_response: { type: "FileDescriptorResponse", id: 4 },
                      list_services_response: { type: "ListServiceResponse", id: 6 },
                      error_response: { type: "ErrorResponse", id: 7 },
                    },
                  },
                  ServerReflection: {
                    methods: {
                      ServerReflectionInfo: {
                        requestType: "ServerReflectionRequest",
                        requestStream: true,
                        responseType: "ServerReflectionResponse",
                        responseStream: true,
                      },
                    },
                  },
                },
              },
            },
          },
        },
      },
    },
  },
  OPTIONS,
);

// One length-delimited field: how a FileDescriptorSet holds a file.
function field(number, bytes) {
  const head = [(number << 3) | 2];
  for (let rest = bytes.length; ; rest >>>= 7) {
    head.push(rest > 0x7f ? (rest & 0x7f) | 0x80 : rest);
    if (rest <= 0x7f) break;
  }
  return Buffer.concat([Buffer.from(head), bytes]);
}

// Names of services and the description of all of them.
export async function describe(address, credentials) {
  const { ServerReflection } = grpc.loadPackageDefinition(REFLECTION).grpc.reflection.v1alpha;
  const client = new ServerReflection(address, credentials);
  const stream = client.ServerReflectionInfo({ deadline: Date.now() + 10_000 });
  const replies = stream[Symbol.asyncIterator]();
  const ask = async (request) => {
    stream.write(request);
    const { value } = await replies.next();
    if (value.error_response) throw new Error(`reflection: ${value.error_response.error_message}`);
    return value;
  };
  try {
    const listed = await ask({ list_services: "" });
    const services = listed.list_services_response.service.map((s) => s.name);
    const files = new Map();
    for (const service of services) {
      // The server lists its health service without describing it.
      if (!service.startsWith("viommu.")) continue;
      const answer = await ask({ file_containing_symbol: service });
      // The file and everything it imports.
      for (const bytes of answer.file_descriptor_response.file_descriptor_proto) {
        files.set(bytes.toString("latin1"), bytes);
      }
    }
    const set = Buffer.concat([...files.values()].map((bytes) => field(1, bytes)));
    return { services, definition: protoLoader.loadFileDescriptorSetFromBuffer(set, OPTIONS) };
  } finally {
    stream.end();
    client.close();
  }
}

// Unary calls as promises with a deadline; streams as they are.
function promised(stub, seconds) {
  const out = { close: () => stub.close() };
  for (const [name, method] of Object.entries(Object.getPrototypeOf(stub))) {
    if (!method?.path) continue;
    out[name] =
      method.requestStream || method.responseStream
        ? stub[name].bind(stub)
        : (request = {}) =>
            new Promise((resolve, reject) =>
              stub[name](request, { deadline: Date.now() + seconds * 1000 }, (error, response) =>
                error ? reject(error) : resolve(response),
              ),
            );
  }
  return out;
}

// A client of `service` ("GuestService" or "HypervisorService") at `address` ("unix:/path" or
// "host:port"). `credentials`: grpc.credentials.createSsl(ca, key, cert) beyond this machine.
export async function connect(address, service, credentials = grpc.credentials.createInsecure(), seconds = 10) {
  const { definition } = await describe(address, credentials);
  const Service = grpc.loadPackageDefinition(definition).viommu.v1[service];
  return promised(new Service(address, credentials), seconds);
}

// The same from the proto files of this repository, without asking the server.
export function fromProtos(folder, address, service, credentials = grpc.credentials.createInsecure(), seconds = 10) {
  const definition = protoLoader.loadSync(
    ["viommu/v1/guest_service.proto", "viommu/v1/hypervisor_service.proto"],
    { ...OPTIONS, includeDirs: [folder] },
  );
  const Service = grpc.loadPackageDefinition(definition).viommu.v1[service];
  return promised(new Service(address, credentials), seconds);
}

export { grpc };
