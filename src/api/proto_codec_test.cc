#include "api/proto_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "api/tensor_codec.h"

namespace tidepool::api {
namespace {

using inference::ModelInferRequest;
using ::testing::HasSubstr;

template <typename Element>
std::string Bytes(const std::vector<Element>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(Element));
}

ModelInferRequest Request(const std::string& datatype, const std::vector<int64_t>& shape) {
  ModelInferRequest request;
  request.set_model_name("m");
  request.set_id("7");
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype(datatype);
  input->mutable_shape()->Add(shape.begin(), shape.end());
  return request;
}

std::string ErrorOf(ModelInferRequest request) {
  const StatusOr<DecodedProto> decoded = DecodeProto(&request);
  EXPECT_EQ(decoded.status().code(), StatusCode::kInvalidArgument);
  return decoded.ok() ? "" : MessageOf(decoded.status());
}

TEST(ProtoCodec, TakesRawContents) {
  ModelInferRequest request = Request("FP32", {1, 2});
  request.add_raw_input_contents(Bytes<float>({1, 2}));
  request.add_outputs()->set_name("y");
  (*request.mutable_parameters())["timeout"].set_int64_param(1500);
  const StatusOr<DecodedProto> decoded = DecodeProto(&request);
  ASSERT_TRUE(decoded.ok()) << ToString(decoded.status());
  EXPECT_EQ(decoded->request.model, "m");
  EXPECT_EQ(decoded->request.id, "7");
  EXPECT_EQ(decoded->request.outputs, std::vector<std::string>{"y"});
  EXPECT_EQ(decoded->request.inputs[0].data, Bytes<float>({1, 2}));
  EXPECT_EQ(decoded->form, TensorForm::kRaw);
  EXPECT_EQ(decoded->timeout, absl::Microseconds(1500));
}

TEST(ProtoCodec, ReadsAndWritesTypedContentsOfEveryType) {
  const auto round_trip = [](const char* datatype, auto fill, const std::string& expected) {
    ModelInferRequest request = Request(datatype, {2});
    fill(request.mutable_inputs(0)->mutable_contents());
    StatusOr<DecodedProto> decoded = DecodeProto(&request);
    ASSERT_TRUE(decoded.ok()) << datatype << ": " << ToString(decoded.status());
    EXPECT_EQ(decoded->form, TensorForm::kTyped);
    EXPECT_EQ(decoded->request.inputs[0].data, expected) << datatype;
    inference::ModelInferResponse response;
    ASSERT_TRUE(EncodeProto({.outputs = decoded->request.inputs}, TensorForm::kTyped, &response).ok());
    EXPECT_EQ(response.outputs(0).contents().SerializeAsString(), request.inputs(0).contents().SerializeAsString()) << datatype;
    EXPECT_EQ(response.raw_output_contents_size(), 0);
  };
  using Contents = inference::InferTensorContents;
  round_trip(
      "BOOL", [](Contents* c) { c->add_bool_contents(true), c->add_bool_contents(false); }, std::string("\1\0", 2));
  round_trip(
      "INT8", [](Contents* c) { c->add_int_contents(-128), c->add_int_contents(127); }, Bytes<int8_t>({-128, 127}));
  round_trip(
      "INT16", [](Contents* c) { c->add_int_contents(-2), c->add_int_contents(3); }, Bytes<int16_t>({-2, 3}));
  round_trip(
      "INT32", [](Contents* c) { c->add_int_contents(INT32_MIN), c->add_int_contents(3); }, Bytes<int32_t>({INT32_MIN, 3}));
  round_trip(
      "INT64", [](Contents* c) { c->add_int64_contents(INT64_MIN), c->add_int64_contents(3); }, Bytes<int64_t>({INT64_MIN, 3}));
  round_trip(
      "UINT8", [](Contents* c) { c->add_uint_contents(0), c->add_uint_contents(255); }, Bytes<uint8_t>({0, 255}));
  round_trip(
      "UINT16", [](Contents* c) { c->add_uint_contents(0), c->add_uint_contents(65535); }, Bytes<uint16_t>({0, 65535}));
  round_trip(
      "UINT32", [](Contents* c) { c->add_uint_contents(1), c->add_uint_contents(UINT32_MAX); }, Bytes<uint32_t>({1, UINT32_MAX}));
  round_trip(
      "UINT64", [](Contents* c) { c->add_uint64_contents(1), c->add_uint64_contents(UINT64_MAX); },
      Bytes<uint64_t>({1, UINT64_MAX}));
  round_trip(
      "FP32", [](Contents* c) { c->add_fp32_contents(1.5f), c->add_fp32_contents(-2); }, Bytes<float>({1.5f, -2}));
  round_trip(
      "FP64", [](Contents* c) { c->add_fp64_contents(1.5), c->add_fp64_contents(-2); }, Bytes<double>({1.5, -2}));
  round_trip(
      "BYTES", [](Contents* c) { c->add_bytes_contents("ab"), c->add_bytes_contents(""); },
      std::string("\2\0\0\0ab\0\0\0\0", 10));
}

TEST(ProtoCodec, NamesWhatIsWrong) {
  ModelInferRequest request;
  EXPECT_THAT(ErrorOf(request), HasSubstr("model_name is empty"));
  request = Request("FP33", {1});
  EXPECT_THAT(ErrorOf(request), HasSubstr("input 'x'"));
  request = Request("FP32", {-1});
  EXPECT_THAT(ErrorOf(request), HasSubstr("has shape [-1]; allowed: dimensions of 0 and above"));
  request = Request("FP32", {int64_t{1} << 62, int64_t{1} << 62});
  EXPECT_THAT(ErrorOf(request), HasSubstr("which is more than"));
  request = Request("FP32", {2});
  request.add_raw_input_contents("1234567");
  EXPECT_THAT(ErrorOf(request), HasSubstr("tensor 'x' has 7 bytes of data; its type FP32 and shape [2] need 8"));
  request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
  EXPECT_THAT(ErrorOf(request), HasSubstr("has both contents and raw_input_contents"));
  request = Request("FP32", {1});
  request.add_raw_input_contents("1234");
  request.add_raw_input_contents("1234");
  EXPECT_THAT(ErrorOf(request), HasSubstr("raw_input_contents has 2 entries for 1 inputs"));
  request = Request("FP32", {1});
  request.mutable_inputs(0)->mutable_contents()->add_int_contents(1);
  EXPECT_THAT(ErrorOf(request), HasSubstr("contents in a field that is not the one of its type FP32"));
  request = Request("UINT8", {1});
  request.mutable_inputs(0)->mutable_contents()->add_uint_contents(256);
  EXPECT_THAT(ErrorOf(request), HasSubstr("tensor 'x' holds 256, which does not fit UINT8"));
  request = Request("INT8", {1});
  request.mutable_inputs(0)->mutable_contents()->add_int_contents(-129);
  EXPECT_THAT(ErrorOf(request), HasSubstr("holds -129, which does not fit INT8"));
  request = Request("FP16", {1});
  EXPECT_THAT(ErrorOf(request), HasSubstr("send it in raw_input_contents"));
  request = Request("BYTES", {1});
  request.add_raw_input_contents(std::string("\5\0\0\0ab", 6));
  EXPECT_THAT(ErrorOf(request), HasSubstr("element 0 says it has 5 bytes, but 2 are left"));
  request = Request("BYTES", {2});
  request.add_raw_input_contents(std::string("\2\0\0\0ab", 6));
  EXPECT_THAT(ErrorOf(request), HasSubstr("has 1 BYTES elements; its shape [2] needs 2"));
  request = Request("BYTES", {1});
  request.add_raw_input_contents("ab");
  EXPECT_THAT(ErrorOf(request), HasSubstr("ends within the length of element 0"));
  request = Request("FP32", {0});
  (*request.mutable_parameters())["timeout"].set_string_param("soon");
  EXPECT_THAT(ErrorOf(request), HasSubstr("parameter 'timeout' of the request is"));
  request = Request("FP32", std::vector<int64_t>(17, 1));
  EXPECT_THAT(ErrorOf(request), HasSubstr("has 17 dimensions; allowed: at most 16"));
}

TEST(ProtoCodec, AnswersRawWhereATypeHasNoTypedField) {
  inference::ModelInferResponse response;
  ASSERT_TRUE(EncodeProto({.outputs = {{.name = "h", .datatype = DType::kF16, .shape = {1}, .data = "hi"}}}, TensorForm::kTyped,
                          &response)
                  .ok());
  ASSERT_EQ(response.raw_output_contents_size(), 1);
  EXPECT_EQ(response.raw_output_contents(0), "hi");
  EXPECT_EQ(response.outputs(0).datatype(), "FP16");
}

TEST(ProtoCodec, NeverAcceptsATensorThatDoesNotAddUp) {
  ModelInferRequest valid = Request("FP32", {1, 2});
  valid.add_raw_input_contents(Bytes<float>({1, 2}));
  auto* text = valid.add_inputs();
  text->set_name("t");
  text->set_datatype("BYTES");
  text->add_shape(2);
  valid.add_raw_input_contents(std::string("\1\0\0\0a\2\0\0\0bc", 11));
  const std::string bytes = valid.SerializeAsString();
  std::mt19937 random(11);
  const google::protobuf::LogSilencer silencer;  // it reports each text that is not UTF-8
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string mutated = bytes;
    for (size_t i = random() % 3; i > 0; --i) mutated[random() % mutated.size()] = static_cast<char>(random());
    ModelInferRequest request;
    if (!request.ParseFromString(mutated)) continue;
    const StatusOr<DecodedProto> decoded = DecodeProto(&request);
    if (!decoded.ok()) {
      ++refused;
      continue;
    }
    ++accepted;
    for (const serve::Tensor& tensor : decoded->request.inputs) EXPECT_TRUE(CheckTensor(tensor).ok());
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace tidepool::api
