// Bodies of POST /workers and the addresses in them, held against a parsed tree.
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "gateway/worker_request.h"
#include "net/http.h"

using namespace sluice;
using Json = nlohmann::ordered_json;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const Json tree = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto request = gateway::read_worker_request(text);
  if (!request.ok()) {
    FUZZ_CHECK(!request.error().message.empty(), "an error says what is wrong");
    const bool plain = tree.is_object() && tree.size() == 1 && tree.contains("url") && tree["url"].is_string();
    FUZZ_CHECK(!plain, "an address is enough");
    return 0;
  }
  FUZZ_CHECK(tree.is_object() && tree["url"] == request->url, "the address is the tree's");
  FUZZ_CHECK(request->details.api_key.value_or("") ==
                 (tree.contains("api_key") && tree["api_key"].is_string() ? tree["api_key"] : Json("")),
             "the key is the tree's");
  if (request->details.priority)
    FUZZ_CHECK(tree["priority"] == *request->details.priority, "the priority is the tree's");
  if (request->details.cost) FUZZ_CHECK(tree["cost"] == *request->details.cost, "the cost is the tree's");
  FUZZ_CHECK(request->details.labels.size() == (tree.contains("labels") ? tree["labels"].size() : 0),
             "all labels are read");

  const auto url = net::parse_url(request->url);
  if (!url.ok()) return 0;
  const auto again = net::parse_url(url->to_string());
  FUZZ_CHECK(again.ok() && again->to_string() == url->to_string(), "an address that was accepted stays the same");
  FUZZ_CHECK(!url->host.empty() && url->port != 0, "an address leads somewhere");
  return 0;
}
