# The core without Python, for the C++ programs of the tests: one set of objects per variant, shared by every folder of programs.
# Included with HERE (the folder), PROGRAMS (one .cpp each) and HEADERS set; gives $(OUT)/VARIANT-DIGEST/PROGRAM for each variant.
#   DIGEST=crc32c   builds as on a machine without <xxhash.h>
#   OUT=DIR         where objects and programs go

ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/../..)
OUT ?= $(ROOT)/build/programs
CXX ?= g++
DIGEST ?= $(if $(shell $(CXX) -include xxhash.h -x c++ -fsyntax-only /dev/null 2>&1),crc32c,xxh3_128)

SOURCES := $(filter-out $(ROOT)/csrc/bind%,$(wildcard $(ROOT)/csrc/*.cpp $(ROOT)/csrc/*/*.cpp))
COMMON := -std=c++20 -g1 -Wall -Wextra -Werror -pthread $(if $(filter xxh3_128,$(DIGEST)),-DGFT_HAVE_XXHASH)
LIBRARIES := -ldl
FLAGS_plain := -O2
FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FLAGS_tsan := -O1 -fsanitize=thread -Wno-tsan

# Only the digests know how they were built; everything else is compiled once per variant.
core = $(patsubst $(ROOT)/csrc/%.cpp,$(OUT)/$(1)/%.o,$(filter-out $(ROOT)/csrc/digest/%,$(SOURCES))) \
       $(patsubst $(ROOT)/csrc/%.cpp,$(OUT)/$(or $(DIGESTS_OF_$(1)),$(1))-$(DIGEST)/%.o,$(filter $(ROOT)/csrc/digest/%,$(SOURCES)))

# $(1) variant, $(2) compiler, $(3) flags for linking a program only, $(4) more sources of every program
define variant
$(OUT)/$(1)/%.o $(OUT)/$(1)-$(DIGEST)/%.o: $(ROOT)/csrc/%.cpp
	@mkdir -p $$(@D)
	$(2) $(COMMON) $(FLAGS_$(1)) -MMD -c $$< -o $$@
$(foreach p,$(PROGRAMS),$(OUT)/$(1)-$(DIGEST)/$(p)): $(OUT)/$(1)-$(DIGEST)/%: $(HERE)/%.cpp $(4) $(HEADERS) $(call core,$(1))
	$(2) $(COMMON) $(FLAGS_$(1)) $(3) $$(filter %.cpp %.o,$$^) $(LIBRARIES) -o $$@
-include $(patsubst %.o,%.d,$(call core,$(1)))
endef
