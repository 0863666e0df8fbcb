#include "gateway/error_shape.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

TEST(ErrorShapeTest, HasTheShapeOfTheReference) {
  const auto response = error_response(503, "no_available_workers", "nobody is there");
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.headers.get("X-SMG-Error-Code"), "no_available_workers");
  EXPECT_EQ(response.headers.get("content-type"), "application/json");
  EXPECT_EQ(Json::parse(response.body), (Json{{"error",
                                               {{"type", "Service Unavailable"},
                                                {"code", "no_available_workers"},
                                                {"message", "nobody is there"},
                                                {"param", nullptr}}}}));
}

TEST(ErrorShapeTest, AnyTextMakesValidJson) {
  for (const std::string_view odd : {"\"\\\n\x01", "\xff\xfe", "你", ""}) {
    EXPECT_TRUE(Json::parse(error_response(400, "bad_request", odd).body).is_object());
    EXPECT_TRUE(Json::parse(quoted(odd)).is_string());
  }
}

TEST(ErrorShapeTest, ABrokenStreamEndsWithOneEvent) {
  EXPECT_EQ(stream_error_event("it broke"),
            "data: {\"error\":{\"message\":\"it broke\",\"type\":\"stream_error\"}}\n\n");
}

}  // namespace
}  // namespace sluice::gateway
