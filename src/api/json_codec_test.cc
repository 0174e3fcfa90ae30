#include "api/json_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "api/tensor_codec.h"
#include "base/json.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr int64_t kJsonLimit = 1 << 20;

template <typename Element>
std::string Bytes(const std::vector<Element>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(Element));
}

StatusOr<DecodedJson> Decode(const std::string& body) { return DecodeInferBody(body, std::nullopt, kJsonLimit); }

// A request with one input made of these parts.
std::string Body(const std::string& datatype, const std::string& shape, const std::string& data) {
  return R"({"inputs":[{"name":"x","datatype":")" + datatype + R"(","shape":)" + shape + R"(,"data":)" + data + "}]}";
}

std::string ErrorOf(const std::string& body) {
  const StatusOr<DecodedJson> decoded = Decode(body);
  EXPECT_FALSE(decoded.ok()) << body;
  EXPECT_EQ(decoded.status().code(), StatusCode::kInvalidArgument) << body;
  return decoded.ok() ? "" : MessageOf(decoded.status());
}

TEST(JsonCodec, ReadsFlatAndNestedDataAlike) {
  for (const char* data : {"[1,2.5,-3,4e-1]", "[[1,2.5],[-3,0.4]]"}) {
    const StatusOr<DecodedJson> decoded = Decode(Body("FP32", "[2,2]", data));
    ASSERT_TRUE(decoded.ok()) << ToString(decoded.status());
    EXPECT_EQ(decoded->request.inputs[0].data, Bytes<float>({1, 2.5f, -3, 0.4f}));
    EXPECT_EQ(decoded->request.inputs[0].shape, (std::vector<int64_t>{2, 2}));
  }
}

TEST(JsonCodec, ReadsEveryTypeThatHasAJsonForm) {
  const auto data = [](const char* datatype, const char* values) {
    const StatusOr<DecodedJson> decoded = Decode(Body(datatype, "[2]", values));
    return decoded.ok() ? decoded->request.inputs[0].data : ToString(decoded.status());
  };
  EXPECT_EQ(data("BOOL", "[true,0]"), std::string("\1\0", 2));
  EXPECT_EQ(data("UINT8", "[0,255]"), Bytes<uint8_t>({0, 255}));
  EXPECT_EQ(data("INT8", "[-128,127]"), Bytes<int8_t>({-128, 127}));
  EXPECT_EQ(data("UINT16", "[0,65535]"), Bytes<uint16_t>({0, 65535}));
  EXPECT_EQ(data("INT16", "[-32768,1]"), Bytes<int16_t>({-32768, 1}));
  EXPECT_EQ(data("UINT32", "[0,4294967295]"), Bytes<uint32_t>({0, 4294967295u}));
  EXPECT_EQ(data("INT32", "[-2147483648,5]"), Bytes<int32_t>({INT32_MIN, 5}));
  EXPECT_EQ(data("UINT64", "[0,18446744073709551615]"), Bytes<uint64_t>({0, UINT64_MAX}));
  EXPECT_EQ(data("INT64", "[-9223372036854775808,7]"), Bytes<int64_t>({INT64_MIN, 7}));
  EXPECT_EQ(data("FP64", "[0.1,-1e300]"), Bytes<double>({0.1, -1e300}));
  EXPECT_EQ(data("BYTES", R"(["ab","é"])"), std::string("\2\0\0\0ab\2\0\0\0\xc3\xa9", 12));
}

TEST(JsonCodec, ReadsAScalarAndAnEmptyTensor) {
  EXPECT_EQ(Decode(Body("INT32", "[]", "5"))->request.inputs[0].data, Bytes<int32_t>({5}));
  EXPECT_EQ(Decode(Body("INT32", "[]", "[5]"))->request.inputs[0].data, Bytes<int32_t>({5}));
  EXPECT_EQ(Decode(Body("INT32", "[0,3]", "[]"))->request.inputs[0].data, "");
}

TEST(JsonCodec, ReadsIdOutputsAndParameters) {
  const StatusOr<DecodedJson> decoded = Decode(
      R"({"id":"r7","parameters":{"binary_data_output":true,"timeout":2500,"priority":1},"inputs":[],
          "outputs":[{"name":"a","parameters":{"binary_data":false}},{"name":"b"}]})");
  ASSERT_TRUE(decoded.ok()) << ToString(decoded.status());
  EXPECT_EQ(decoded->request.id, "r7");
  EXPECT_EQ(decoded->request.outputs, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(decoded->timeout, absl::Microseconds(2500));
  EXPECT_FALSE(decoded->forms.IsBinary("a"));
  EXPECT_TRUE(decoded->forms.IsBinary("b"));
}

TEST(JsonCodec, TakesBinaryTensorsInTheOrderOfTheInputs) {
  const std::string json = R"({"inputs":[{"name":"a","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}},)"
                           R"({"name":"b","datatype":"INT8","shape":[1],"data":[3]},)"
                           R"({"name":"c","datatype":"FP16","shape":[1],"parameters":{"binary_data_size":2}}]})";
  const std::string body = json + Bytes<float>({1, 2}) + "hi";
  const StatusOr<DecodedJson> decoded = DecodeInferBody(body, static_cast<int64_t>(json.size()), kJsonLimit);
  ASSERT_TRUE(decoded.ok()) << ToString(decoded.status());
  EXPECT_EQ(decoded->request.inputs[0].data, Bytes<float>({1, 2}));
  EXPECT_EQ(decoded->request.inputs[1].data, "\3");
  EXPECT_EQ(decoded->request.inputs[2].data, "hi");
}

TEST(JsonCodec, RefusesBinaryPartsThatDoNotAddUp) {
  const std::string json = R"({"inputs":[{"name":"a","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]})";
  const auto error = [](const std::string& body, std::optional<int64_t> length) {
    const StatusOr<DecodedJson> decoded = DecodeInferBody(body, length, kJsonLimit);
    EXPECT_EQ(decoded.status().code(), StatusCode::kInvalidArgument);
    return MessageOf(decoded.status());
  };
  const auto size = static_cast<int64_t>(json.size());
  EXPECT_THAT(error(json + "1234567", size),
              HasSubstr("input 'a' says it has 8 bytes of binary data, but 7 are left in the body"));
  EXPECT_THAT(error(json + "123456789", size), HasSubstr("the body has 1 bytes more than its JSON"));
  EXPECT_THAT(error(json, size + 1), HasSubstr("Inference-Header-Content-Length is"));
  EXPECT_THAT(error(json, -1), HasSubstr("allowed: 0 to the size of the body"));
  EXPECT_THAT(error(json, size - 1), HasSubstr("the request is not JSON"));
  EXPECT_THAT(error(json, std::nullopt), HasSubstr("has no Inference-Header-Content-Length header"));
  EXPECT_THAT(error(R"({"inputs":[{"name":"a","datatype":"FP32","shape":[2],"data":[1,2],"parameters":{"binary_data_size":8}}]})",
                    std::nullopt),
              HasSubstr("both \"data\" and binary_data_size"));
  EXPECT_THAT(
      error(R"({"inputs":[{"name":"a","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":-8}}]})", std::nullopt),
      HasSubstr("parameter 'binary_data_size' of input 'a' is -8; allowed: a whole number from 0 to 2^62"));
  const std::string short_json = R"({"inputs":[{"name":"a","datatype":"FP32","shape":[3],"parameters":{"binary_data_size":8}}]})";
  EXPECT_THAT(error(short_json + "12345678", static_cast<int64_t>(short_json.size())),
              HasSubstr("tensor 'a' has 8 bytes of data; its type FP32 and shape [3] need 12"));
}

TEST(JsonCodec, NamesWhatIsWrongWithARequest) {
  EXPECT_THAT(ErrorOf("{\"inputs\":[}"), HasSubstr("the request is not JSON"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("the request is not JSON"));
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("the request is JSON of type array; allowed: an object"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("the request has no \"inputs\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":{}})"), HasSubstr("allowed: an array of at most 256"));
  EXPECT_THAT(ErrorOf(R"({"inputs":[1]})"), HasSubstr("input 0 is of type number; allowed: an object"));
  EXPECT_THAT(ErrorOf(R"({"inputs":[{"datatype":"FP32","shape":[1],"data":[1]}]})"), HasSubstr("input 0 has no \"name\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":[{"name":"x","shape":[1],"data":[1]}]})"), HasSubstr("input 'x' has no \"datatype\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":[{"name":"x","datatype":"FP32","data":[1]}]})"), HasSubstr("input 'x' has no \"shape\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]})"),
              HasSubstr("no \"data\" and no binary_data_size"));
  EXPECT_THAT(ErrorOf(R"({"id":7,"inputs":[]})"), HasSubstr("\"id\" of the request is of type number; allowed: a string"));
  EXPECT_THAT(ErrorOf(R"({"inputs":[],"outputs":[{}]})"), HasSubstr("output 0 has no \"name\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":[],"parameters":{"timeout":"soon"}})"),
              HasSubstr("parameter 'timeout' of the request is \"soon\""));
  EXPECT_THAT(ErrorOf(R"({"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]})"),
              HasSubstr("parameter 'classification' of output 'y' is not supported"));
  EXPECT_THAT(ErrorOf(Body("FLOAT", "[1]", "[1]")), HasSubstr("input 'x'"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[-1]", "[1]")), HasSubstr("tensor 'x' has shape [-1]; allowed: dimensions of 0 and above"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[4294967296,4294967296,4294967296]", "[1]")), HasSubstr("which is more than"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[99999999999999999999]", "[1]")), HasSubstr("\"shape\" of input 'x' holds"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[1.5]", "[1]")), HasSubstr("\"shape\" of input 'x' holds 1.5"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[1]")), HasSubstr("more than 16 dimensions"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[4]", "[1,2,3]")), HasSubstr("\"data\" of input 'x' has 3 elements; its shape [4] needs 4"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[2,2]", "[[1,2],[3]]")), HasSubstr("has 1 entries in dimension 1; its shape [2,2] needs 2"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[2,2]", "[[1,2],3]")), HasSubstr("nested unevenly"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[1]", "[[1]]")), HasSubstr("holds an array; allowed: numbers"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[1]", "[null]")), HasSubstr("input 'x' of type FP32 holds null; allowed: numbers"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[1]", "[1e39]")), HasSubstr("allowed: numbers of its range"));
  EXPECT_THAT(ErrorOf(Body("UINT8", "[1]", "[256]")), HasSubstr("holds 256; allowed: whole numbers from 0 to 255"));
  EXPECT_THAT(ErrorOf(Body("UINT8", "[1]", "[-1]")), HasSubstr("holds -1; allowed: whole numbers from 0 to 255"));
  EXPECT_THAT(ErrorOf(Body("INT64", "[1]", "[1.0]")), HasSubstr("holds 1.0; allowed: whole numbers"));
  EXPECT_THAT(ErrorOf(Body("BOOL", "[1]", "[2]")), HasSubstr("holds 2; allowed: true, false, 1, 0"));
  EXPECT_THAT(ErrorOf(Body("BYTES", "[1]", "[1]")), HasSubstr("allowed: strings"));
  EXPECT_THAT(ErrorOf(Body("FP16", "[1]", "[1]")), HasSubstr("has no JSON form; send it with binary_data_size"));
}

TEST(JsonCodec, RefusesJsonAboveItsLimit) {
  const std::string body = Body("FP32", "[1]", "[1" + std::string(200, ' ') + "]");
  const StatusOr<DecodedJson> decoded = DecodeInferBody(body, std::nullopt, 100);
  EXPECT_THAT(ToString(decoded.status()), HasSubstr("bytes; allowed: 100. Send large tensors with binary_data_size"));
}

TEST(JsonCodec, SurvivesDeepNesting) {
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_THAT(ErrorOf(Body("FP32", "[1]", deep)), HasSubstr("allowed: numbers"));
  EXPECT_THAT(ErrorOf(Body("FP32", "[" + deep + "]", "[1]")), HasSubstr("\"shape\" of input 'x' holds an array"));
  EXPECT_THAT(ErrorOf(deep), HasSubstr("type array"));
}

serve::InferResponse Response() {
  serve::InferResponse response{.model = "m", .version = "3", .id = "a\"b"};
  response.outputs.push_back({.name = "f", .datatype = DType::kF32, .shape = {1, 2}, .data = Bytes<float>({0.1f, -2})});
  response.outputs.push_back({.name = "i", .datatype = DType::kI64, .shape = {2}, .data = Bytes<int64_t>({INT64_MIN, 1})});
  response.outputs.push_back({.name = "b", .datatype = DType::kBytes, .shape = {1}, .data = std::string("\2\0\0\0x\"", 6)});
  return response;
}

TEST(JsonCodec, WritesAnswersThatReadBackExactly) {
  const StatusOr<EncodedJson> encoded = EncodeInferBody(Response(), {});
  ASSERT_TRUE(encoded.ok());
  EXPECT_FALSE(encoded->json_length.has_value());
  const Json json = Json::parse(encoded->body);
  EXPECT_EQ(json["model_name"], "m");
  EXPECT_EQ(json["model_version"], "3");
  EXPECT_EQ(json["id"], "a\"b");
  EXPECT_EQ(json["outputs"][0]["shape"], (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(json["outputs"][0]["datatype"], "FP32");
  EXPECT_EQ(json["outputs"][0]["data"][0].get<float>(), 0.1f);
  EXPECT_EQ(json["outputs"][1]["data"][0].get<int64_t>(), INT64_MIN);
  EXPECT_EQ(json["outputs"][2]["data"][0], "x\"");
}

TEST(JsonCodec, WritesBinaryOutputsBehindTheJsonInOrder) {
  const StatusOr<EncodedJson> encoded = EncodeInferBody(Response(), {.binary_by_default = true, .binary = {{"i", false}}});
  ASSERT_TRUE(encoded.ok());
  ASSERT_TRUE(encoded->json_length.has_value());
  const Json json = Json::parse(encoded->body.substr(0, static_cast<size_t>(*encoded->json_length)));
  EXPECT_EQ(json["outputs"][0]["parameters"]["binary_data_size"], 8);
  EXPECT_FALSE(json["outputs"][0].contains("data"));
  EXPECT_EQ(json["outputs"][1]["data"][1], 1);
  EXPECT_EQ(json["outputs"][2]["parameters"]["binary_data_size"], 6);
  EXPECT_EQ(encoded->body.substr(static_cast<size_t>(*encoded->json_length)),
            Bytes<float>({0.1f, -2}) + std::string("\2\0\0\0x\"", 6));
}

TEST(JsonCodec, WritesNullForNumbersThatJsonDoesNotHave) {
  serve::InferResponse response;
  response.outputs.push_back({.name = "f",
                              .datatype = DType::kF32,
                              .shape = {3},
                              .data = Bytes<float>({std::nanf(""), std::numeric_limits<float>::infinity(), 1})});
  EXPECT_THAT(EncodeInferBody(response, {})->body, HasSubstr("\"data\":[null,null,1]"));
}

TEST(JsonCodec, AsksForBinaryWhereAnOutputHasNoJsonForm) {
  serve::InferResponse response;
  response.outputs.push_back({.name = "h", .datatype = DType::kF16, .shape = {1}, .data = "hi"});
  EXPECT_THAT(ToString(EncodeInferBody(response, {}).status()), HasSubstr("ask for it with \"binary_data\": true"));
  EXPECT_TRUE(EncodeInferBody(response, {.binary_by_default = true}).ok());
}

// Whatever the bytes are, the answer is an error or a request whose tensors add up.
TEST(JsonCodec, NeverAcceptsATensorThatDoesNotAddUp) {
  const std::string json =
      R"({"id":"1","parameters":{"binary_data_output":true},"inputs":[{"name":"a","datatype":"FP32","shape":[2,1],)"
      R"("parameters":{"binary_data_size":8}},{"name":"b","datatype":"BYTES","shape":[2],"data":["x","yy"]},)"
      R"({"name":"c","datatype":"INT64","shape":[1,2],"data":[[1,-2]]}],"outputs":[{"name":"o","parameters":{"binary_data":true}}]})";
  const std::string valid = json + Bytes<float>({1, 2});
  const std::string alphabet = "{}[]\",:0123456789-.eE+ntfu\\ \xff";
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string body = valid;
    auto length = static_cast<int64_t>(json.size());
    const int edits = static_cast<int>(random() % 4);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % body.size();
      switch (random() % 4) {
        case 0: body[at] = alphabet[random() % alphabet.size()]; break;
        case 1: body.erase(at, 1 + random() % 8); break;
        case 2: body.insert(at, 1, alphabet[random() % alphabet.size()]); break;
        default: body[at] = static_cast<char>(random()); break;
      }
      if (body.empty()) body = "{";
    }
    if (random() % 8 == 0) length += static_cast<int64_t>(random() % 9) - 4;
    const StatusOr<DecodedJson> decoded = DecodeInferBody(body, length, kJsonLimit);
    if (!decoded.ok()) {
      EXPECT_EQ(decoded.status().code(), StatusCode::kInvalidArgument);
      EXPECT_FALSE(MessageOf(decoded.status()).empty());
      continue;
    }
    ++accepted;
    for (const serve::Tensor& tensor : decoded->request.inputs) EXPECT_TRUE(CheckTensor(tensor).ok()) << body;
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace tidepool::api
