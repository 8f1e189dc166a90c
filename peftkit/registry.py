"""Find a component class by name and validate its options.

A registry is named like the package whose modules fill it (`peftkit.methods`), and like the entry-point group through
which other distributions add to it. Looking a name up tries, in order: what this process has registered, the
package's own modules, entry points. Only the entry point that carries the asked name is ever imported.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_jsonable_python

from peftkit.errors import UnknownComponentError


class Component(BaseModel):
    """Options and behaviour of one named part of a recipe. Holds no tensors; its module imports no torch at the top."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    name: ClassVar[str]
    shorthand: ClassVar[str | None] = None
    """Option that `"name:value"` sets, so that `"hub:rouge"` means `{"name": "hub", "metric": "rouge"}`."""

    def spec(self) -> dict[str, Any]:
        """The recipe form of this component, every default written out: `{"name": "lora", "rank": 8, ...}`."""
        return {"name": self.name, **plain_values(self.model_dump())}


C = TypeVar("C", bound=Component)


def plain_values(value: Any) -> Any:
    """`value` with nothing in it but what YAML can say; unlike pydantic's JSON mode it keeps integer keys."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return to_jsonable_python(value)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` probably means: another spelling, a part of it, or its initials; or None."""
    folded = {re.sub(r"[-\s]", "_", name.lower()): name for name in known}
    given = re.sub(r"[-\s]", "_", word.lower())
    spelled = get_close_matches(given, folded, n=1, cutoff=0.6)
    if spelled:
        return folded[spelled[0]]
    parts = [name for name in folded if min(len(name), len(given)) > 3 and (name in given or given in name)]
    initials = [name for name in folded if "_" in name and "".join(part[:1] for part in name.split("_")) == given]
    found = initials or parts
    return folded[found[0]] if found else None


class Registry(Generic[C]):
    """The components of one kind.

    Args:
        package: dotted package whose modules register the built-in components; also the entry-point group.
        noun: what one component is called in messages, e.g. "tuning method".
    """

    def __init__(self, package: str, noun: str) -> None:
        self.package = package
        self.noun = noun
        self._classes: dict[str, type[C]] = {}
        self._builtins_imported = False

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator that files a component under `name`.

        Raises:
            ValueError: another class already has the name.
        """

        def file(cls: type[C]) -> type[C]:
            holder = self._classes.get(name)
            if holder is not None and (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{self.noun} {name!r} is registered twice: by {holder.__module__}.{holder.__qualname__} and by "
                    f"{cls.__module__}.{cls.__qualname__}; give one of them another name"
                )
            cls.name = name
            self._classes[name] = cls
            return cls

        return file

    def names(self) -> list[str]:
        """All known names, sorted; runs no plugin code."""
        self._import_builtins()
        return sorted({*self._classes, *self._entry_points()})

    def loaded_names(self) -> list[str]:
        """Names whose classes are at hand: built-ins and what plugins have registered so far."""
        self._import_builtins()
        return sorted(self._classes)

    def plugin_package(self, name: str) -> str | None:
        """Distribution whose entry point carries `name`, for a name that is not loaded yet; runs no plugin code."""
        point = None if name in self._classes else self._entry_points().get(name)
        return _owner(point) if point else None

    def get(self, name: str) -> type[C]:
        """The class filed under `name`.

        Raises:
            UnknownComponentError: nothing has the name, or its plugin cannot be imported.
        """
        if name not in self._classes:
            self._import_builtins()
        if name not in self._classes and name in self._entry_points():
            self._import_plugin(self._entry_points()[name])
        if name not in self._classes:
            raise UnknownComponentError(self._unknown(name))
        return self._classes[name]

    def build(self, spec: str | Mapping[str, Any]) -> C:
        """A validated component from its recipe form: `"lora"`, `{"name": "lora", "rank": 8}` or `"hub:rouge"`.

        Raises:
            UnknownComponentError: the name is missing or unknown.
            pydantic.ValidationError: options the component does not accept.
        """
        options = self._spelled_out(spec) if isinstance(spec, str) else dict(spec)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise UnknownComponentError(
                f"a {self.noun} needs a name: write  {{name: ..., option: ...}}  with one of: {', '.join(self.names())}"
            )
        return self.get(name).model_validate(options)

    def _spelled_out(self, text: str) -> dict[str, Any]:
        """`"lora"` or `"hub:rouge"` as a mapping."""
        name, colon, value = text.partition(":")
        if not colon:
            return {"name": text}
        option = self.get(name).shorthand
        if option is None:
            raise UnknownComponentError(
                f"the {self.noun} {name!r} takes nothing after a colon, but {text!r} gives {value!r}; "
                f"write  {{name: {name}, option: ...}}"
            )
        return {"name": name, option: value}

    def _import_builtins(self) -> None:
        if self._builtins_imported:
            return
        package = import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            import_module(f"{self.package}.{module.name}")
        # Set only now: after a failed import the next look-up must fail the same way, not call the name unknown.
        self._builtins_imported = True

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in reversed(entry_points(group=self.package))}

    def _import_plugin(self, point: EntryPoint) -> None:
        owner = _owner(point)
        rivals = {other.value: _owner(other) for other in entry_points(group=self.package, name=point.name)}
        if len(rivals) > 1:
            raise UnknownComponentError(
                f"the {self.noun} {point.name!r} comes from more than one package "
                f"({', '.join(sorted(rivals.values()))}); uninstall all but one"
            )
        try:
            cls = point.load()
        # A plugin is foreign code: whatever it raises becomes one message that names the package to blame.
        except Exception as problem:
            raise UnknownComponentError(
                f"the {self.noun} {point.name!r} comes from the package {owner!r}, which cannot be imported "
                f"({type(problem).__name__}: {problem}); repair or uninstall that package"
            ) from problem
        if point.name in self._classes:
            return
        if not (isinstance(cls, type) and issubclass(cls, Component)):
            raise UnknownComponentError(
                f"the {self.noun} {point.name!r} comes from the package {owner!r}, whose entry point {point.value!r} "
                "is no component class; repair or uninstall that package"
            )
        self.register(point.name)(cast("type[C]", cls))

    def _unknown(self, name: str) -> str:
        close = closest(name, self.names())
        hint = f"; did you mean {close!r}?" if close else ""
        return f"unknown {self.noun} {name!r}{hint} (known: {', '.join(self.names())})"


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


class From:
    """Annotation for a pydantic field that holds a component by name: `Annotated[TuningMethod, From(methods)]`."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation by name, serialisation by `Component.spec`."""
        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part.spec())
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A mark that `recipe.json_schema` turns into a reference; components may contain each other, schemas not."""
        return {"x-registry": self.registry.package}

    def _validate(self, value: Any) -> Any:
        if isinstance(value, Component):
            return value
        if isinstance(value, (str, Mapping)):
            return self.registry.build(value)
        problem = f"must be a {self.registry.noun}, by its name or as a mapping with 'name', not {value!r}"
        raise PydanticCustomError("component", "{problem}", {"problem": problem})
