// The command line of the programs here: name=value, each name once, in any order.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::compare {

class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string_view argument = argv[i];
      const size_t at = argument.find('=');
      if (at == std::string_view::npos) fail_or_die(std::string(argument) + ": not name=value");
      values_[std::string(argument.substr(0, at))] = argument.substr(at + 1);
    }
  }

  double number(const std::string& name, double otherwise) {
    const std::string text = take(name);
    if (text.empty()) return otherwise;
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (*end != '\0' || value < 0) fail_or_die(name + "=" + text + ": not a number from 0 on");
    return value;
  }
  int64_t count(const std::string& name, int64_t otherwise) {
    return static_cast<int64_t>(number(name, static_cast<double>(otherwise)));
  }
  std::vector<uint16_t> ports(const std::string& name) {
    std::vector<uint16_t> ports;
    std::istringstream text(take(name));
    for (std::string port; std::getline(text, port, ',');)
      ports.push_back(static_cast<uint16_t>(std::atoi(port.c_str())));
    if (ports.empty()) fail_or_die(name + "=port,...: missing");
    return ports;
  }
  // After the last of the others: what is left is a mistake.
  void done() const {
    if (!values_.empty()) fail_or_die(values_.begin()->first + ": no such argument");
  }

  [[noreturn]] static void fail_or_die(const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(2);
  }

 private:
  std::string take(const std::string& name) {
    const auto at = values_.find(name);
    if (at == values_.end()) return {};
    std::string value = at->second;
    values_.erase(at);
    return value;
  }

  std::map<std::string, std::string> values_;
};

}  // namespace sluice::compare
